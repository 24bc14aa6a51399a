"""What vocoders and their discriminators minimise, by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gptfl_jax.generators.speech.spectrogram import log_mel
from train import vocoders

MEL = functools.partial(log_mel, floor=1e-5)
spectral_loss = jax.jit(functools.partial(vocoders.spectral_loss, MEL))


def test_the_spectral_loss_by_hand():
    generator = np.random.default_rng(0)
    made, real = generator.standard_normal((2, 1, 2048)).astype(np.float32) / 10
    made, real = jnp.asarray(made), jnp.asarray(real)
    assert spectral_loss(real, real) == 0

    def distance(ours, theirs):
        convergence = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        ours, theirs = (np.maximum(x, 1e-2) ** 0.3 for x in (ours, theirs))
        return convergence + np.abs(ours - theirs).mean() / theirs.mean()

    mels = [np.asarray(log_mel(wave, 1e-5)) for wave in (made, real)]
    expected = 0.3 * np.abs(mels[0] - mels[1]).mean()
    expected += distance(10 ** mels[0], 10 ** mels[1])
    for window, hop in ((512, 128), (256, 64)):
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
        expected += distance(*spectra) / 2
    loss = spectral_loss(made, real)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_vocoder_and_rival_learn_apart():
    """Each one's gradient is that of its own loss, the other held still."""
    rival = vocoders.Discriminator(features=(2, 3))
    real = jax.random.normal(jax.random.key(0), (2, 600)) / 10
    mels = jax.random.normal(jax.random.key(1), (2, 600)) / 10
    params = {
        "vocoder": jnp.float32(0.7),
        "rival": jax.jit(rival.init)(jax.random.key(2), real)["params"],
    }

    def vocode(gain, mels):
        return gain * mels

    @jax.jit
    def loss(params, weight=0.0):
        return vocoders.adversarial_loss(
            vocode, rival, MEL, weight, params, (mels, real)
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

    gradient = jax.jit(jax.grad(loss))(params)
    for one, other in zip(
        jax.tree.leaves(gradient["rival"]),
        jax.tree.leaves(jax.jit(jax.grad(of_rival))(params["rival"])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    expected = jax.jit(jax.grad(of_vocoder))(jnp.float32(0.7))
    np.testing.assert_allclose(gradient["vocoder"], expected, rtol=1e-4)
    # The spectra add theirs.
    spectral = spectral_loss(0.7 * mels, real)
    np.testing.assert_allclose(
        loss(params, 5.0) - loss(params), 5 * spectral, rtol=1e-4
    )


def test_a_discriminator_sees_periods():
    """Clips that differ by one sample in `period` differ in its rows alone."""
    rival = vocoders.Discriminator(features=(2,))
    wave = jax.random.normal(jax.random.key(0), (1, 210))
    params = jax.jit(rival.init)(jax.random.key(1), wave)
    judge = jax.jit(rival.apply)
    judgements, values = judge(params, wave)
    assert [len(x) for x in judgements] == [2, 3, 5, 7]
    assert [x.shape[1] for x in judgements] == [105, 70, 42, 30]
    assert len(values) == 4
    changed, _ = judge(params, wave.at[0, 4::5].add(1.0))
    differ = jnp.abs(changed[2] - judgements[2]).max((1, 2))
    assert (differ > 0).tolist() == [False] * 4 + [True]
