"""Training of vocoders: by spectra, then against a discriminator."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jaxtyping import Array, Float, Float32, Int16, Int32, PRNGKeyArray
from ml_collections import ConfigDict

from gptfl_jax.generators.speech.hifigan import HifiGan
from gptfl_jax.generators.speech.spectrogram import magnitudes

LogMel = Callable[[Float[Array, "batch samples"]], Float[Array, "batch frames mels"]]

# What a discriminator reshapes waveforms by, in samples (arXiv 2010.05646, 2.3).
_PERIODS = (2, 3, 5, 7)
# Magnitude below which spectra are silence: 82 dB below a full tone in 512 samples.
_FLOOR = 1e-2
# Windows and hops of the spectra that the vocoder is compared by, in samples.
_RESOLUTIONS = ((512, 128), (256, 64))
# Power of magnitudes in which quiet parts count beside loud ones.
_COMPRESSION = 0.3
# Of the log-mel spectrogram beside magnitudes.
_MEL_WEIGHT = 0.3


class Clips(NamedTuple):
    """What a vocoder learns from."""

    mels: Float32[np.ndarray, "clips frames mels"]
    waves: Int16[np.ndarray, "clips samples"]
    frames: Int32[np.ndarray, " clips"]
    """Length of each clip."""


class Streams(NamedTuple):
    """Keys of the weights and the batches of both phases."""

    init: PRNGKeyArray
    data: PRNGKeyArray
    rival_init: PRNGKeyArray
    rival_data: PRNGKeyArray


def train_vocoder(
    train: Callable[..., Any],
    settings: ConfigDict,
    streams: Streams,
    vocoder: HifiGan,
    log_mel: LogMel,
    clips: Clips,
    taught: Float32[np.ndarray, "clips frames mels"],
) -> Any:
    """A vocoder's variables, from the phases "vocoder" and "adversarial".

    Args:
        train: `phases.train_phase` but for what differs between phases.
        settings: the config's section. Of it count `segment_frames`,
            `vocoder_batch_size`, `spectral_weight`, and `adversarial_steps`, 0 for no
            such phase.
        streams: keys.
        vocoder: the network, whose statistics are those of the clips' spectrograms.
        log_mel: what the spectrograms are of waveforms.
        clips: spectrograms and waveforms.
        taught: spectrograms of the same clips, as the vocoder will be given them; the
            adversarial phase learns from these.
    """
    mels, frames = clips.mels, clips.frames
    length = settings.segment_frames
    hop = int(np.prod(vocoder.config.upsample_rates))
    blank = jnp.zeros((1, length, mels.shape[2]))
    variables = vocoder.init(streams.init, blank)
    inside = np.arange(mels.shape[1]) < frames[:, None]
    heard = mels[inside]
    statistics = {
        "statistics": {
            "mel_mean": jnp.asarray(heard.mean(0)),
            "mel_scale": jnp.asarray(heard.std(0)),
        }
    }

    def vocode(params, mels):
        return vocoder.apply({"params": params, **statistics}, mels)

    def batch(data, key):
        mels, waves, frames = data
        row_key, start_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (settings.vocoder_batch_size,), 0, len(mels))
        room = jnp.maximum(frames[rows] - length, 0)
        starts = jax.random.randint(start_key, rows.shape, 0, room + 1)

        def cut(row, start):
            mel = jax.lax.dynamic_slice_in_dim(mels[row], start, length)
            wave = jax.lax.dynamic_slice_in_dim(waves[row], start * hop, length * hop)
            return mel, wave / 2**15

        return jax.vmap(cut)(rows, starts)

    params = train(
        "vocoder",
        params=variables["params"],
        loss=lambda params, examples, key: spectral_loss(
            log_mel, vocode(params, examples[0]), examples[1]
        ),
        data=tuple(clips),
        batch=batch,
        key=streams.data,
    )
    if settings.adversarial_steps:
        rival = Discriminator()
        against = rival.init(streams.rival_init, jnp.zeros((1, length * hop)))["params"]

        def loss(params, examples, key):
            return adversarial_loss(
                vocode, rival, log_mel, settings.spectral_weight, params, examples
            )

        params = train(
            "adversarial",
            params={"vocoder": params, "rival": against},
            loss=loss,
            data=(taught, *clips[1:]),
            batch=batch,
            key=streams.rival_data,
        )["vocoder"]
    return {"params": params, **statistics}


class Discriminator(linen.Module):
    """Tells made from real waveforms, by the samples of one period after the other.

    The multi-period discriminator of arXiv 2010.05646 in small.

    Attributes:
        features: channels of the convolutions; each but the last takes every third
            step.
    """

    features: tuple[int, ...] = (16, 32, 64, 64)

    @linen.compact
    def __call__(
        self, waves: Float[Array, "batch samples"]
    ) -> tuple[list[Float[Array, "..."]], list[Float[Array, "..."]]]:
        """A judgement for each period, 1 for real, and all values on the way to it."""
        judgements, values = [], []
        for period in _PERIODS:
            rest = -waves.shape[1] % period
            x = jnp.pad(waves, ((0, 0), (0, rest)), mode="reflect")
            x = x.reshape(len(x), -1, period).swapaxes(1, 2)
            x = x.reshape(-1, x.shape[2], 1)
            for i, features in enumerate(self.features):
                stride = 3 if i < len(self.features) - 1 else 1
                name = f"period_{period}_conv_{i}"
                x = linen.Conv(features, (5,), stride, name=name)(x)
                x = jax.nn.leaky_relu(x, 0.1)
                values.append(x)
            x = linen.Conv(1, (3,), name=f"period_{period}_judgement")(x)
            judgements.append(x)
        return judgements, values


def spectral_loss(
    log_mel: LogMel,
    made: Float[Array, "batch samples"],
    real: Float[Array, "batch samples"],
) -> Float[Array, ""]:
    """Distance of log-mel spectrograms, and of magnitudes in bands and short windows.

    A network whose frames are `hop` samples apart makes of a steady spectrogram tones
    at multiples of its frame rate alone. Fine spectra tell such a tone from its
    neighbour, so that none at all comes nearer than one some Hz beside: by windows of
    1,024 samples and the logarithm of every bin, low tones of drums were not learned,
    40 dB too faint. So magnitudes are compared in mel bands and in windows whose bins
    are as wide as the bands (31 Hz and 62 Hz at 16 kHz): by their distance relative
    to the real ones, that loud parts decide (spectral convergence, arXiv 1910.11480,
    2.2), and by that of their powers of `_COMPRESSION`, in which quiet parts count.
    """
    ours, theirs = log_mel(made), log_mel(real)
    loss = _MEL_WEIGHT * jnp.abs(ours - theirs).mean()
    loss += _magnitude_loss(10**ours, 10**theirs)
    for window, hop in _RESOLUTIONS:
        ours, theirs = magnitudes(made, window, hop), magnitudes(real, window, hop)
        loss += _magnitude_loss(ours, theirs) / len(_RESOLUTIONS)
    return loss


def _magnitude_loss(ours, theirs):
    convergence = jnp.linalg.norm(theirs - ours) / jnp.linalg.norm(theirs)
    # The slope of a power below 1 is infinite at 0.
    ours, theirs = (jnp.maximum(x, _FLOOR) ** _COMPRESSION for x in (ours, theirs))
    return convergence + jnp.abs(theirs - ours).mean() / theirs.mean()


def adversarial_loss(
    vocode: Any,
    rival: Discriminator,
    log_mel: LogMel,
    spectral_weight: float,
    params: Any,
    examples: tuple[Array, Array],
) -> Float[Array, ""]:
    """The vocoder's loss and its rival's, each blind to the other's parameters.

    Least squares, the distance of the rival's values, and `spectral_loss`
    (arXiv 2010.05646, 2.4).

    Args:
        vocode: parameters and spectrograms -> waveforms.
        rival: what tells them from real ones.
        log_mel: of `spectral_loss`.
        spectral_weight: of `spectral_loss`.
        params: "vocoder" and "rival".
        examples: spectrograms and their waveforms.
    """
    mels, real = examples
    made = vocode(params["vocoder"], mels)
    both = jnp.concatenate([real, jax.lax.stop_gradient(made)])
    judged, values = rival.apply({"params": params["rival"]}, both)

    def halves(x):
        # Periods are rows of their own: real ones come first.
        return jnp.split(x, 2)

    rival_loss = sum(
        ((1 - true) ** 2).mean() + (false**2).mean()
        for true, false in map(halves, judged)
    )
    fixed = jax.lax.stop_gradient(params["rival"])
    judged, ours = rival.apply({"params": fixed}, made)
    deceived = sum(((1 - x) ** 2).mean() for x in judged)
    alike = sum(
        jnp.abs(a - jax.lax.stop_gradient(halves(b)[0])).mean()
        for a, b in zip(ours, values, strict=True)
    )
    spectral = spectral_loss(log_mel, made, real)
    return rival_loss + deceived + 2 * alike + spectral_weight * spectral
