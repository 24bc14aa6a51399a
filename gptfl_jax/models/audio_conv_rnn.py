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
from gptfl_jax.nn import Conv, frame_mask, hide_padding, max_pool, mean_over_time
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
    r, z, n. Both directions run in one scan, and only `U h` is inside of it.

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
        channels = inputs.shape[-1]
        gates, recurrent = [], []
        for ending in ("", "_reverse"):
            weight, bias = self._weight_and_bias(f"ih_l0{ending}", channels)
            weight, bias = weight.astype(inputs.dtype), bias.astype(inputs.dtype)
            projected = (inputs @ weight.T + bias).swapaxes(0, 1)
            gates.append(projected[::-1] if ending else projected)
            weight, bias = self._weight_and_bias(f"hh_l0{ending}", self.features)
            weight, bias = weight.astype(inputs.dtype), bias.astype(inputs.dtype)
            recurrent.append((weight.T, bias))
        if mask is not None:
            mask = mask.T[..., None]
            mask = (mask, mask[::-1])
        forward, backward = _recurrence(tuple(gates), tuple(recurrent), mask)
        states = jnp.concatenate([forward, backward[::-1]], -1)
        return states.swapaxes(0, 1)

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
    """States after each frame, from zeros, of recurrences that have nothing in common.

    Every argument is a tuple with an entry for each of them: gates from the inputs
    [frames, batch, 3 features], (U, its bias), and which frames are real [frames,
    batch, 1], or None in place of the last tuple. The gradient of U is one product over
    all frames, not a sum of one a frame.
    """
    return _recurrence_forward(gates, recurrent, real)[0]


def _recurrence_forward(gates, recurrent, real):
    def step(states, frame):
        gates, real = frame
        new, kept = [], []
        for i, (weight, bias) in enumerate(recurrent):
            reset, update, candidate = jnp.split(gates[i], 3, -1)
            reset_, update_, from_state = jnp.split(states[i] @ weight + bias, 3, -1)
            reset = jax.nn.sigmoid(reset + reset_)
            update = jax.nn.sigmoid(update + update_)
            candidate = jnp.tanh(candidate + reset * from_state)
            state = (1 - update) * candidate + update * states[i]
            if real is not None:
                state = jnp.where(real[i], state, states[i])
            new.append(state)
            kept.append((states[i], reset, update, candidate, from_state))
        return tuple(new), (tuple(new), tuple(kept))

    features = recurrent[0][0].shape[0]
    start = tuple(jnp.zeros((*x.shape[1:-1], features), x.dtype) for x in gates)
    _, (states, kept) = lax.scan(step, start, (gates, real))
    return states, (kept, recurrent, real)


def _recurrence_backward(residuals, gradient):
    kept, recurrent, real = residuals

    def step(d_states, frame):
        gradient, kept, real = frame
        new, d_gates, d_from_state = [], [], []
        for i, (weight, _) in enumerate(recurrent):
            state, reset, update, candidate, from_state = kept[i]
            d_state = passed = d_states[i] + gradient[i]
            if real is not None:
                d_state = jnp.where(real[i], d_state, 0)
            d_candidate = d_state * (1 - update) * (1 - candidate**2)
            d_update = d_state * (state - candidate) * update * (1 - update)
            d_reset = d_candidate * from_state * reset * (1 - reset)
            both = d_reset, d_update
            d_gates.append(jnp.concatenate([*both, d_candidate], -1))
            d_from_state.append(jnp.concatenate([*both, d_candidate * reset], -1))
            before = d_state * update + d_from_state[i] @ weight.T
            if real is not None:
                before += passed - d_state
            new.append(before)
        return tuple(new), (tuple(d_gates), tuple(d_from_state))

    start = tuple(jnp.zeros_like(x[0]) for x in gradient)
    frames = gradient, kept, real
    _, (d_gates, d_from_state) = lax.scan(step, start, frames, reverse=True)
    d_recurrent = tuple(
        (jnp.tensordot(states, d, ((0, 1), (0, 1))), d.sum((0, 1)))
        for (states, *_), d in zip(kept, d_from_state, strict=True)
    )
    return d_gates, d_recurrent, None


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
        x = nn.Dense(self.hidden, kernel_init=_torch_uniform, name="dense")(x)
        return nn.Dense(
            self.num_classes, kernel_init=_torch_uniform, name="classifier"
        )(jax.nn.relu(x))


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
