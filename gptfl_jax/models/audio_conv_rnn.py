"""The original's classifier of sounds: two convolutions over time and a GRU.

From FedAudio: A Federated Learning Benchmark for Audio Tasks (arXiv 2210.15707) and
GPT-FL (arXiv 2306.02210). Released weights are read by `read_weights`.
"""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gptfl_jax.errors import UserError
from gptfl_jax.nn import Conv, Dense, frame_mask, hide_padding, max_pool, mean_over_time
from gptfl_jax.released import hub, torch_weights

Inputs = (
    Float[Array, "batch frames bands"]
    | tuple[Float[Array, "batch frames bands"], Int[Array, " batch"]]
)


class BidirectionalGRU(nn.Module):
    """A gated recurrent unit (arXiv 1406.1078) in both directions, as torch's `GRU`.

    r = sigmoid(W_r x + U_r h), z = sigmoid(W_z x + U_z h),
    n = tanh(W_n x + r * U_n h), h' = (1 - z) * n + z * h, biases in every W and U.

    Parameters have torch's names and layout: [3 features, inputs], gates in the order
    r, z, n. Both directions run in one loop, and only `U h` is inside of it.

    Attributes:
        features: of the state of one direction.
    """

    features: int

    @nn.compact
    def __call__(
        self,
        inputs: Float[Array, "batch frames channels"],
        mask: Bool[Array, "batch frames"] | None = None,
    ) -> Float[Array, "batch frames two_features"]:
        """States of the forward and of the backward direction, side by side.

        Where `mask` is False the state stays as it is: behind a clip's end, so that the
        backward direction begins, with zeros, at its last frame.
        """
        frames = inputs.swapaxes(0, 1)
        rows = frames.reshape(-1, frames.shape[-1])  # One batch axis: see `nn.Dense`.
        gates, recurrent = [], []
        for ending in ("", "_reverse"):
            weight, bias = self._weight_and_bias(f"ih_l0{ending}", frames.shape[-1])
            weight, bias = weight.astype(frames.dtype), bias.astype(frames.dtype)
            of_inputs = rows @ weight.T + bias
            gates.append(of_inputs.reshape(*frames.shape[:2], -1))
            weight, bias = self._weight_and_bias(f"hh_l0{ending}", self.features)
            recurrent.append((weight.astype(frames.dtype), bias.astype(frames.dtype)))
        real = None if mask is None else mask.T[..., None]
        states = _recurrence(tuple(gates), tuple(recurrent), real)
        return jnp.concatenate(states, -1).swapaxes(0, 1)

    def _weight_and_bias(self, name, inputs):
        # Torch draws all of them from U(-1 / sqrt(features), 1 / sqrt(features)).
        bound = self.features**-0.5

        def uniform(key, shape):
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        gates = 3 * self.features
        return (
            self.param(f"weight_{name}", uniform, (gates, inputs)),
            self.param(f"bias_{name}", uniform, (gates,)),
        )


@jax.custom_vjp
def _recurrence(gates, recurrent, real):
    """States after each frame, from zeros, of a recurrence along the frames and of one
    against them.

    Args:
        gates: of each, what the inputs give them [frames, batch, 3 features].
        recurrent: of each, (U [3 features, features], its bias).
        real: which frames are [frames, batch, 1], or None: all.
    """
    return _recurrence_forward(gates, recurrent, real)[0]


def _recurrence_forward(gates, recurrent, real):
    count, features = gates[0].shape[0], recurrent[0][0].shape[1]
    across = [(weight.T, bias) for weight, bias in recurrent]

    def step(t, carry):
        states, kept = carry
        new, written = [], []
        for i, (weight, bias) in enumerate(across):
            at = t if i == 0 else count - 1 - t
            reset, update, candidate = _gates(_frame(gates[i], at))
            reset_, update_, from_state = _gates(states[i] @ weight + bias)
            reset = jax.nn.sigmoid(reset + reset_)
            update = jax.nn.sigmoid(update + update_)
            if real is not None:
                update = jnp.where(_frame(real, at), update, 1)
            candidate = jnp.tanh(candidate + reset * from_state)
            state = (1 - update) * candidate + update * states[i]
            new.append(state)
            all_states, *others = kept[i]
            # Behind the one that the recurrence begins with.
            place = at + 1 if i == 0 else at
            numbers = reset, update, candidate, from_state
            written.append(
                (
                    _with_frame(all_states, state, place),
                    *(
                        _with_frame(rows, x, at)
                        for rows, x in zip(others, numbers, strict=True)
                    ),
                )
            )
        return tuple(new), tuple(written)

    zeros = jnp.zeros((count + 1, *gates[0].shape[1:-1], features), gates[0].dtype)
    kept = (zeros, *[zeros[1:]] * 4)
    start = (zeros[0], zeros[0]), (kept, kept)
    _, kept = lax.fori_loop(0, count, step, start)
    return (kept[0][0][1:], kept[1][0][:-1]), (kept, recurrent)


def _recurrence_backward(residuals, gradient):
    """The gradient of a state passes a frame as `d * update + (d * slopes) @ U`. The
    slopes, and the products over all frames, stand outside of the loop."""
    kept, recurrent = residuals
    count = gradient[0].shape[0]
    before, slopes, of_candidate = [], [], []
    for i in range(2):
        states, reset, update, candidate, from_state = kept[i]
        before.append(states[1:] if i else states[:-1])
        slope = (1 - update) * (1 - candidate**2)
        to_reset = slope * from_state * reset * (1 - reset)
        to_update = (before[i] - candidate) * update * (1 - update)
        slopes.append(jnp.stack([to_reset, to_update, slope * reset], -2))
        of_candidate.append(slope)

    def step(t, carry):
        d_states, written = carry
        new, rows = [], []
        for i, (weight, _) in enumerate(recurrent):
            at = t if i else count - 1 - t
            d_state = d_states[i] + _frame(gradient[i], at)
            d_gates = d_state[:, None] * _frame(slopes[i], at)
            passed = d_gates.reshape(d_state.shape[0], -1) @ weight
            new.append(d_state * _frame(kept[i][2], at) + passed)
            rows.append(_with_frame(written[i], d_state, at))
        return tuple(new), tuple(rows)

    zeros = tuple(jnp.zeros_like(x) for x in gradient)
    start = tuple(jnp.zeros_like(x[0]) for x in gradient)
    _, d_states = lax.fori_loop(0, count, step, (start, zeros))
    d_gates, d_recurrent = [], []
    for i in range(2):
        d = d_states[i][..., None, :] * slopes[i]
        flat = d.reshape(-1, recurrent[i][0].shape[0])
        # The product whose transposed factor is the smaller one.
        d_weight = before[i].reshape(-1, before[i].shape[-1]).T @ flat
        d_recurrent.append((d_weight.T, flat.sum(0)))
        # A candidate takes its part from the inputs whole, not times reset.
        to_candidate = (d_states[i] * of_candidate[i])[..., None, :]
        d_input = jnp.concatenate([d[..., :2, :], to_candidate], -2)
        d_gates.append(d_input.reshape(*d.shape[:-2], -1))
    return tuple(d_gates), tuple(d_recurrent), None


def _frame(rows, at):
    return lax.dynamic_index_in_dim(rows, at, 0, keepdims=False)


def _with_frame(rows, row, at):
    return lax.dynamic_update_index_in_dim(rows, row, at, 0)


def _gates(x):
    """[batch, 3 features] -> reset, update, candidate."""
    return jnp.split(x, 3, -1)


_recurrence.defvjp(_recurrence_forward, _recurrence_backward)


class Model(nn.Module):
    """2 x [conv 3, relu, max pool 2], bidirectional GRU, mean over time, 2 x linear.

    285,028 parameters for 128 bands and 36 classes, as the released weights for Speech
    Commands. Inputs are features, or the pair (features, lengths); without lengths all
    frames are real.

    Attributes:
        num_classes: outputs.
        widths: channels of the two convolutions.
        features: of the GRU in each direction.
        hidden: width of the first linear layer.
        dropout: share of the values before the GRU that are dropped in training.
        masked: whether a clip's result is that of the clip alone. The original is not:
            padding enters its GRU and its mean. Its weights were trained so, and False
            gives its results.
    """

    num_classes: int
    widths: tuple[int, int] = (64, 128)
    features: int = 128
    hidden: int = 128
    dropout: int | float = 0.1
    masked: bool = True

    @nn.compact
    def __call__(
        self,
        inputs: Inputs,
        train: bool = False,
        mask: Float[Array, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits; nothing in it depends on `mask`, which is that of the examples."""
        x, lengths = inputs if isinstance(inputs, tuple) else (inputs, None)
        if not self.masked:
            lengths = None
        if x.shape[1] < 4:
            raise UserError(
                "config.model.name = 'audio_conv_rnn': takes clips of 4 frames or more"
            )
        for i, width in enumerate(self.widths):
            x = hide_padding(x, lengths)
            x = Conv(width, 3, padding=1, kernel_init=_torch_uniform, name=f"conv_{i}")(
                x
            )
            x = max_pool(jax.nn.relu(x), 2)
            if lengths is not None:
                # A window across the end of a clip is dropped, as at that of the array.
                lengths = jnp.maximum(lengths // 2, 1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        real = None if lengths is None else frame_mask(lengths, x.shape[1])
        x = BidirectionalGRU(self.features, name="rnn")(x, real)
        x = mean_over_time(x, lengths)
        x = Dense(self.hidden, kernel_init=_torch_uniform, name="dense")(x)
        return Dense(self.num_classes, kernel_init=_torch_uniform, name="classifier")(
            jax.nn.relu(x)
        )


# U(-1 / sqrt(inputs), 1 / sqrt(inputs)): what torch's layers begin with.
_torch_uniform = initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# Released weights -------------------------------------------------------------------

RELEASED = {
    "conv.0": "conv.0",
    "conv.3": "conv.1",
    "pred_layer.0": "dense",
    "pred_layer.2": "classifier",
}
"""The original's names of our layers, where they differ."""


def from_torch(
    weights: Mapping[str, np.ndarray], source: str = "the weights"
) -> tuple[Model, dict[str, Any]]:
    """The model that a checkpoint of the original holds, and its variables.

    The sizes follow from the weights. `masked` is False, as these were trained; ask for
    `model.clone(masked=True)` to leave the padding out.

    Args:
        weights: by the original's names, such as `hub.read_weights` gives.
        source: where they come from, for error messages.

    Raises:
        UserError: they do not belong to this model.
    """
    try:
        out, bands, _ = weights["conv.0.weight"].shape
        model = Model(
            num_classes=weights["pred_layer.2.weight"].shape[0],
            widths=(out, weights["conv.3.weight"].shape[0]),
            features=weights["rnn.weight_hh_l0"].shape[1],
            hidden=weights["pred_layer.0.weight"].shape[0],
            masked=False,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"{source}: not a checkpoint of the original's audio_conv_rnn ({error}): "
            "name another file"
        ) from error
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 4, bands)))
    )

    def current_name(name):
        layer, _, leaf = name.rpartition(".")
        return f"{RELEASED.get(layer, layer)}.{leaf}"

    params = torch_weights.from_torch(
        shapes["params"], weights, source, current_name, jnp.float32
    )
    return model, {"params": params}


def read_weights(path: str | os.PathLike) -> tuple[Model, dict[str, Any]]:
    """`from_torch` of a file, without torch and without running what is in it.

    Raises:
        UserError: the file is missing, damaged, unsafe or of another model.
    """
    return from_torch(hub.read_weights(path), os.fspath(path))
