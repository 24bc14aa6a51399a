import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import audio_conv_rnn
from gptfl_jax.released import hub

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_gru(x, weights, ending, backward):
    """torch's GRU by its documented equations, one clip, float64."""
    w_in, w_hidden = weights[f"weight_ih_l0{ending}"], weights[f"weight_hh_l0{ending}"]
    b_in, b_hidden = weights[f"bias_ih_l0{ending}"], weights[f"bias_hh_l0{ending}"]
    size = w_hidden.shape[1]
    state, states = np.zeros(size), {}
    order = range(len(x))
    for t in reversed(order) if backward else order:
        i, h = w_in @ x[t] + b_in, w_hidden @ state + b_hidden
        reset = sigmoid(i[:size] + h[:size])
        update = sigmoid(i[size : 2 * size] + h[size : 2 * size])
        new = np.tanh(i[2 * size :] + reset * h[2 * size :])
        state = (1 - update) * new + update * state
        states[t] = state
    return np.stack([states[t] for t in order])


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_gru_are_those_of_its_equations(masked):
    frames, batch, size = 5, 3, 4
    keys = jax.random.split(jax.random.key(0), 6)
    gates = tuple(jax.random.normal(k, (frames, batch, 3 * size)) for k in keys[:2])
    recurrent = tuple(
        (jax.random.normal(k, (3 * size, size)), jax.random.normal(k, (3 * size,)))
        for k in keys[2:4]
    )
    pulls = [jax.random.normal(k, (frames, batch, size)) for k in keys[4:]]
    real = None
    if masked:
        real = jnp.arange(frames)[:, None, None] < jnp.array([5, 2, 4])[:, None]

    def known(gates, recurrent):
        results = []
        for i, (gate, (weight, bias)) in enumerate(zip(gates, recurrent, strict=True)):
            state, states = jnp.zeros((batch, size)), []
            for t in reversed(range(frames)) if i else range(frames):
                h = state @ weight.T + bias
                reset, update = jnp.split(
                    jax.nn.sigmoid(gate[t, :, : 2 * size] + h[:, : 2 * size]), 2, -1
                )
                new = jnp.tanh(gate[t, :, 2 * size :] + reset * h[:, 2 * size :])
                new = (1 - update) * new + update * state
                state = jnp.where(real[t], new, state) if masked else new
                states.append(state)
            results.append(jnp.stack(states[::-1] if i else states))
        return tuple(results)

    def ours(gates, recurrent):
        return audio_conv_rnn._recurrence(gates, recurrent, real)

    def run(states):
        def total(gates, recurrent):
            found = states(gates, recurrent)
            return sum((s * p).sum() for s, p in zip(found, pulls, strict=True))

        return states(gates, recurrent), jax.grad(total, (0, 1))(gates, recurrent)

    check = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    jax.tree.map(check, run(ours), run(known))


def reference(weights, x):
    """Logits of one clip without padding, from the original's weights."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    for layer in ("conv.0", "conv.3"):
        kernel = weights[f"{layer}.weight"]  # out, in, 3
        around = np.pad(x, ((1, 1), (0, 0)))
        y = [np.einsum("oik,ki->o", kernel, around[t : t + 3]) for t in range(len(x))]
        y = np.maximum(np.stack(y) + weights[f"{layer}.bias"], 0)
        y = y[: len(y) // 2 * 2]
        x = np.maximum(y[::2], y[1::2])
    gru = {name.removeprefix("rnn."): value for name, value in weights.items()}
    x = np.concatenate(
        [reference_gru(x, gru, "", False), reference_gru(x, gru, "_reverse", True)], 1
    )
    x = weights["pred_layer.0.weight"] @ x.mean(0) + weights["pred_layer.0.bias"]
    x = np.maximum(x, 0)
    return weights["pred_layer.2.weight"] @ x + weights["pred_layer.2.bias"]


def small_weights(bands=6, widths=(4, 5), features=3, hidden=7, classes=8):
    shapes = {
        "conv.0": ((widths[0], bands, 3), widths[0]),
        "conv.3": ((widths[1], widths[0], 3), widths[1]),
        "pred_layer.0": ((hidden, 2 * features), hidden),
        "pred_layer.2": ((classes, hidden), classes),
    }
    weights = {}
    for name, (weight, bias) in shapes.items():
        weights[f"{name}.weight"] = RNG.normal(size=weight) * 0.5
        weights[f"{name}.bias"] = RNG.normal(size=bias)
    for ending in ("", "_reverse"):
        for kind, inputs in (("ih", widths[1]), ("hh", features)):
            weights[f"rnn.weight_{kind}_l0{ending}"] = RNG.normal(
                size=(3 * features, inputs)
            )
            weights[f"rnn.bias_{kind}_l0{ending}"] = RNG.normal(size=3 * features)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def released():
    if "GPTFL_DATA_DIR" not in os.environ:
        pytest.skip("GPTFL_DATA_DIR is not set")
    return pathlib.Path(os.environ["GPTFL_DATA_DIR"]) / "gptfl" / "gcommand.pth"


@pytest.fixture(scope="module")
def small():
    weights = small_weights()
    model, variables = audio_conv_rnn.from_torch(weights)
    return weights, model, variables


def test_the_equations_of_the_original(small):
    weights, model, variables = small
    x = RNG.normal(size=(2, 23, 6)).astype(np.float32)
    expected = [reference(weights, clip) for clip in x]
    logits = jax.jit(model.apply)(variables, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)


def test_masked_clips_are_as_if_alone(small):
    weights, model, variables = small
    lengths = np.asarray([23, 10, 5, 4], np.int32)
    x = RNG.normal(size=(4, 23, 6)).astype(np.float32)  # garbage behind the ends
    expected = [reference(weights, x[i, :n]) for i, n in enumerate(lengths)]
    inputs = (jnp.asarray(x), jnp.asarray(lengths))
    masked = model.clone(masked=True)
    logits = jax.jit(masked.apply)(variables, inputs)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-5)
    # The original's way takes all frames for real.
    plain = jax.jit(model.apply)
    np.testing.assert_array_equal(plain(variables, inputs), plain(variables, inputs[0]))
    # Nothing flows back from the padding.
    gradient = jax.jit(
        jax.grad(lambda f: masked.apply(variables, (f, inputs[1])).sum())
    )(inputs[0])
    for row, length in zip(np.asarray(gradient), lengths, strict=True):
        assert not row[length:].any() and row[: length // 4 * 4].any()


def test_dropout_and_initial_values():
    model = models.create("audio_conv_rnn", 5, widths=(4, 8), features=6, hidden=3)
    inputs = (jnp.ones((2, 12, 10)), jnp.asarray([12, 8]))
    learner = training.make_learner(model, training.example_of(inputs))
    variables = learner.init(jax.random.key(0))
    # Torch's bounds: 1 / sqrt(inputs of a unit), for the GRU 1 / sqrt(its features).
    params = variables["params"]
    assert params["conv_0"]["kernel"].shape == (3, 10, 4)
    for layer, name, inputs_of_unit in (
        ("conv_0", "kernel", 30),
        ("conv_1", "kernel", 12),
        ("rnn", "weight_ih_l0", 6),
        ("rnn", "bias_hh_l0_reverse", 6),
    ):
        largest = np.abs(params[layer][name]).max()
        assert 0.8 < largest * np.sqrt(inputs_of_unit) <= 1
    batch = training.Batch(inputs, jnp.zeros(2, jnp.int32), jnp.ones(2))
    first, second, again = (
        jax.jit(learner.loss)(variables, batch, jax.random.key(seed))[0]
        for seed in (0, 1, 0)
    )
    assert first == again != second
    represented = jax.jit(learner.represent)(variables, inputs)
    assert represented.shape == (2, 3) and (represented >= 0).all()


def test_released_weights():
    model, variables = audio_conv_rnn.read_weights(released())
    assert model == audio_conv_rnn.Model(36, masked=False)
    assert training.number_of_parameters(variables) == 285_028
    x = RNG.normal(size=(2, 41, 128)).astype(np.float32)
    weights = hub.read_weights(released())
    expected = [reference(weights, clip) for clip in x]
    logits = jax.jit(model.apply)(variables, jnp.asarray(x))
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    zeros = jax.tree.map(np.zeros_like, variables)
    found, whole = models.load_weights("audio_conv_rnn", zeros, released())
    assert whole
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_weights_of_other_models_are_refused(tmp_path, small):
    weights = small[0]
    with pytest.raises(UserError, match="not a checkpoint of the original"):
        audio_conv_rnn.from_torch({"fc.weight": np.zeros((3, 3))})
    with pytest.raises(UserError, match="has no weights rnn.bias_hh_l0"):
        missing = {n: v for n, v in weights.items() if n != "rnn.bias_hh_l0"}
        audio_conv_rnn.from_torch(missing)
    with pytest.raises(UserError, match="has unknown weights conv.7.bias"):
        audio_conv_rnn.from_torch({**weights, "conv.7.bias": np.zeros(3)})
    file = tmp_path / "weights.pth"
    file.write_bytes(b"no pickle")
    with pytest.raises(UserError, match="damaged"):
        audio_conv_rnn.read_weights(file)


def test_clips_that_are_too_short():
    model = models.create("audio_conv_rnn", 3)
    with pytest.raises(UserError, match="4 frames or more"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 3, 2))))
