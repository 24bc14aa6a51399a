"""BC-ResNet: the paper's sizes, and clips of several lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import models, training
from gptfl_jax.errors import UserError
from gptfl_jax.models import bc_resnet


def shapes(bands=40, **options):
    model = models.create("bc_resnet", 12, **options)
    clips = jax.ShapeDtypeStruct((1, 20, bands), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), clips)


# Table 1 of the paper: thousands of parameters.
@pytest.mark.parametrize(
    ("tau", "thousands", "expected"),
    [
        (1, 9.2, 9_232),
        (2, 27.3, 27_284),
        (3, 54.2, 54_168),
        (6, 188, 187_812),
        (8, 321, 321_068),
    ],
)
def test_number_of_parameters(tau, thousands, expected):
    variables = shapes(tau=tau)
    count = training.number_of_parameters(variables)
    digits = 0 if thousands > 100 else 1
    assert round(count / 1000, digits) == thousands
    assert count == expected


def test_sub_spectral_norm_by_hand():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    layer = bc_resnet.SubSpectralNorm(2)
    scale = jnp.asarray([1.0, 10.0, 100.0, 1000.0])
    variables = {
        "params": {"norm": {"scale": scale, "bias": jnp.zeros(4)}},
        "batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}},
    }
    y, _ = layer.apply(variables, jnp.asarray(x), True, None, mutable=["batch_stats"])
    for channel in range(2):
        for part in range(2):
            here = np.s_[:, :, 2 * part : 2 * part + 2, channel]
            expected = (x[here] - x[here].mean()) / np.sqrt(x[here].var() + 1e-5)
            factor = float(scale[2 * channel + part])
            np.testing.assert_allclose(y[here], factor * expected, rtol=1e-4, atol=1e-3)


@pytest.mark.long
def test_padding_changes_nothing():
    model = models.create("bc_resnet", 3, sub_bands=1, dropout=0.0)
    rng = np.random.default_rng(0)
    clips = rng.normal(size=(2, 9, 40)).astype(np.float32)
    lengths = jnp.asarray([6, 9])
    noise = clips.copy()
    noise[0, 6:] = 100.0

    @jax.jit
    def run(variables, clips, lengths):
        tested = model.apply(variables, (clips, lengths))
        trained, state = model.apply(
            variables, (clips, lengths), True, None, mutable=["batch_stats"]
        )
        return tested, trained, state

    given = jnp.asarray(clips), lengths
    variables = jax.jit(model.init)(jax.random.key(0), given)
    variables = jax.tree.map(lambda x: x + 0.1, variables)
    ours, other = (run(variables, jnp.asarray(x), lengths) for x in (clips, noise))
    jax.tree.map(np.testing.assert_array_equal, ours, other)
    alone = jax.jit(model.apply)(variables, given[0][:1, :6])
    np.testing.assert_allclose(ours[0][:1], alone, rtol=1e-5)
    assert np.abs(alone).max() > 1e-3


def test_bands_that_cannot_be_split_are_refused():
    assert shapes(128, sub_bands=8)["params"]["classifier"]["kernel"].shape == (32, 12)
    with pytest.raises(UserError, match="sub_bands = 5: does not fit 128 bands"):
        shapes(128)
