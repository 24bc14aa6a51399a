"""The losses of the small voices, by hand."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from gptfl_jax.generators.speech.spectrogram import log_mel
from train.voices import losses, networks


def test_the_speech_loss_by_hand():
    """Two clips of 4 and 2 frames of one band, two frames a step."""
    made = types.SimpleNamespace(
        frames=jnp.asarray([[1.0, 1, 1, 1], [2, 2, 9, 9]])[:, :, None],
        stop=jnp.asarray([[0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.1, 0.1]]),
    )
    given = {}

    class Model:
        config = types.SimpleNamespace(
            reduction_factor=2,
            pad_token_id=1,
            speech_decoder_prenet_layers=2,
            speech_decoder_prenet_units=3,
            speech_decoder_prenet_dropout=0.5,
        )

        def apply(self, variables, *arguments, method):
            given[method] = arguments
            return {"steps": (made, None), "refine": made.frames + 1}.get(method)

    mels = jnp.asarray([[3.0, 4, 5, 6], [2, 2, 0, 0]])[:, :, None]
    tokens = jnp.asarray([[5, 6, 2], [5, 2, 1]])
    speakers = jnp.arange(8.0).reshape(4, 2)
    loss = losses.speech_loss(
        Model(),
        {},
        {"model": {}, "speakers": speakers},
        (mels, jnp.asarray([4, 2]), tokens, jnp.asarray([3, 0])),
        jax.random.key(0),
    )
    before = (2 + 3 + 4 + 5 + 0 + 0) / 6
    after = (1 + 2 + 3 + 4 + 1 + 1) / 6
    # Frames 2 and 3 of the first clip and both of the second belong to a last step.
    entropy = -(4 * np.log(0.5) + 2 * np.log(0.8)) / 6
    np.testing.assert_allclose(loss, before + after + entropy, rtol=1e-6)
    frames, voices, keep = given["steps"][:3]
    assert frames[:, :, 0].tolist() == [[0, 4], [0, 2]]  # the last of the step before
    assert voices.tolist() == [[6, 7], [0, 1]]
    assert keep.shape == (2, 2, 2, 3)
    assert given["encode"][1].tolist() == [[True] * 3, [True, True, False]]


def test_the_spectral_loss_by_hand():
    generator = np.random.default_rng(0)
    made, real = generator.standard_normal((2, 1, 2048)).astype(np.float32) / 10
    made, real = jnp.asarray(made), jnp.asarray(real)
    assert losses.spectral_loss(real, real) == 0
    expected = np.abs(log_mel(made, 1e-5) - log_mel(real, 1e-5)).mean()
    for window, hop in ((1024, 256), (512, 128), (256, 64)):
        spectra = []
        for wave in (made, real):
            padded = np.pad(np.asarray(wave[0], float), window // 2, mode="reflect")
            parts = [
                np.fft.rfft(
                    padded[start : start + window]
                    * np.sin(np.pi * np.arange(window) / window) ** 2
                )
                for start in range(0, 2048 + 1, hop)
            ]
            spectra.append(np.abs(parts))
        ours, theirs = spectra
        expected += np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) / 3
        expected += np.abs(np.log(ours / theirs)).mean() / 3
    loss = losses.spectral_loss(made, real)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_vocoder_and_rival_learn_apart():
    """Each one's gradient is that of its own loss, the other held still."""
    rival = networks.Discriminator(features=(2, 3))
    real = jax.random.normal(jax.random.key(0), (2, 600)) / 10
    mels = jax.random.normal(jax.random.key(1), (2, 600)) / 10
    params = {
        "vocoder": jnp.float32(0.7),
        "rival": rival.init(jax.random.key(2), real)["params"],
    }

    def vocode(gain, mels):
        return gain * mels

    def loss(params, weight=0.0):
        return losses.adversarial_loss(
            vocode, rival, weight, params, (mels, real), jax.random.key(3)
        )

    def judged(params, wave):
        return rival.apply({"params": params}, wave)

    def of_rival(params):
        true, false = judged(params, real)[0], judged(params, 0.7 * mels)[0]
        return sum(
            ((1 - t) ** 2).mean() + (f**2).mean()
            for t, f in zip(true, false, strict=True)
        )

    def of_vocoder(gain):
        scores, values = judged(params["rival"], gain * mels)
        _, targets = judged(params["rival"], real)
        alike = sum(jnp.abs(a - b).mean() for a, b in zip(values, targets, strict=True))
        return sum(((1 - s) ** 2).mean() for s in scores) + 2 * alike

    gradient = jax.grad(loss)(params)
    for one, other in zip(
        jax.tree.leaves(gradient["rival"]),
        jax.tree.leaves(jax.grad(of_rival)(params["rival"])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    expected = jax.grad(of_vocoder)(jnp.float32(0.7))
    np.testing.assert_allclose(gradient["vocoder"], expected, rtol=1e-4)
    # The spectra add theirs.
    spectral = losses.spectral_loss(0.7 * mels, real)
    np.testing.assert_allclose(
        loss(params, 5.0) - loss(params), 5 * spectral, rtol=1e-4
    )
