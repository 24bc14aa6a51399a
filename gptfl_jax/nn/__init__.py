"""Layers that classifiers and generators share. Channels are last everywhere."""

from gptfl_jax.convolution import Elementwise, conv
from gptfl_jax.nn.layers import (
    Conv,
    Dense,
    channel_shuffle,
    dense,
    flatten,
    torch_uniform,
)
from gptfl_jax.nn.norms import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Norm,
    norm,
)
from gptfl_jax.nn.pools import adaptive_avg_pool, avg_pool, max_pool
from gptfl_jax.nn.sequences import frame_mask, hide_padding, mean_over_time

__all__ = [
    "BatchNorm",
    "Conv",
    "Dense",
    "Elementwise",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "Norm",
    "adaptive_avg_pool",
    "avg_pool",
    "channel_shuffle",
    "conv",
    "dense",
    "flatten",
    "frame_mask",
    "hide_padding",
    "max_pool",
    "mean_over_time",
    "norm",
    "torch_uniform",
]
