"""What the speech model, the vocoder and its discriminator minimise."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gptfl_jax.generators.speech.spectrogram import log_mel, magnitudes
from gptfl_jax.generators.speech.speecht5 import SpeechT5ForTextToSpeech, Step
from train.voices.corpus import FLOOR
from train.voices.networks import Discriminator

# Windows and hops of the spectra that the vocoder is compared by, in samples.
_RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))


def teach(
    model: SpeechT5ForTextToSpeech,
    variables: Any,
    speakers: Float[Array, "batch features"],
    mels: Float[Array, "batch frames mels"],
    lengths: Int[Array, " batch"],
    tokens: Int[Array, "batch length"],
    key: PRNGKeyArray,
) -> tuple[Step, Float[Array, "batch frames mels"]]:
    """What the model makes of texts when it is told the frames before each step.

    Args:
        model: the speech model.
        variables: its parameters and statistics.
        speakers: a vector for each clip's voice.
        mels: spectrograms.
        lengths: of each in frames.
        tokens: of the texts.
        key: of the prenet's dropout.

    Returns:
        the frames and ends of speech of all steps, and the refined frames.
    """
    config = model.config
    reduction = config.reduction_factor
    batch, frames, bands = mels.shape
    steps = frames // reduction

    def apply(method, *arguments):
        return model.apply(variables, *arguments, method=method)

    mask = tokens != config.pad_token_id
    text = apply("text", apply("encode", tokens, mask))
    before = mels[:, reduction - 1 :: reduction][:, : steps - 1]
    before = jnp.concatenate([jnp.zeros((batch, 1, bands)), before], 1)
    units = (config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units)
    keep = jax.random.bernoulli(
        key, config.speech_decoder_prenet_dropout, (batch, steps, *units)
    )
    start = apply("start", batch, steps)
    made, _ = apply("steps", before, speakers, keep, start, text, mask, jnp.int32(0))
    return made, apply("refine", made.frames, lengths)


def speech_loss(
    model: SpeechT5ForTextToSpeech,
    statistics: Any,
    params: Any,
    examples: tuple[Array, Array, Array, Array],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """How far the model is from spectrograms when it knows the frames before.

    The absolute error of the spectrogram before and after its refinement, and the
    cross-entropy of the end of speech (Shen et al., arXiv 1712.05884, 2.2).

    Args:
        model: the speech model.
        statistics: of its postnet; they stay what they are.
        params: "model", and "speakers": a vector for each voice.
        examples: spectrograms [batch, frames, mels], their lengths in frames, tokens
            [batch, length], and numbers of voices.
        key: of the prenet's dropout.
    """
    mels, lengths, tokens, voices = examples
    variables = {"params": params["model"], **statistics}
    speakers = params["speakers"][voices]
    made, refined = teach(model, variables, speakers, mels, lengths, tokens, key)
    frames = jnp.arange(mels.shape[1])
    inside = (frames < lengths[:, None]).astype(jnp.float32)
    count = inside.sum()

    def distance(spectrograms):
        return (jnp.abs(spectrograms - mels).mean(-1) * inside).sum() / count

    ends = frames >= lengths[:, None] - model.config.reduction_factor
    stop = jnp.clip(made.stop, 1e-6, 1 - 1e-6)
    entropy = -jnp.where(ends, jnp.log(stop), jnp.log1p(-stop))
    return distance(made.frames) + distance(refined) + (entropy * inside).sum() / count


def spectral_loss(
    made: Float[Array, "batch samples"], real: Float[Array, "batch samples"]
) -> Float[Array, ""]:
    """Distance of log-mel spectrograms, and of spectra of several resolutions.

    The second is spectral convergence and the distance of the logarithms, as in
    Parallel WaveGAN (arXiv 1910.11480, 2.2).
    """
    loss = jnp.abs(log_mel(made, FLOOR) - log_mel(real, FLOOR)).mean()
    for window, hop in _RESOLUTIONS:
        ours, theirs = magnitudes(made, window, hop), magnitudes(real, window, hop)
        convergence = jnp.linalg.norm(theirs - ours) / jnp.linalg.norm(theirs)
        logarithms = jnp.log(jnp.maximum(ours, FLOOR) / jnp.maximum(theirs, FLOOR))
        loss += (convergence + jnp.abs(logarithms).mean()) / len(_RESOLUTIONS)
    return loss


def adversarial_loss(
    vocode: Any,
    rival: Discriminator,
    spectral_weight: float,
    params: Any,
    examples: tuple[Array, Array],
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """The vocoder's loss and its rival's, each blind to the other's parameters.

    Least squares, the distance of the rival's values, and `spectral_loss`
    (arXiv 2010.05646, 2.4).

    Args:
        vocode: parameters and spectrograms -> waveforms.
        rival: what tells them from real ones.
        spectral_weight: of `spectral_loss`.
        params: "vocoder" and "rival".
        examples: spectrograms and their waveforms.
        key: unused; the loss draws nothing.
    """
    del key
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
    spectral = spectral_loss(made, real)
    return rival_loss + deceived + 2 * alike + spectral_weight * spectral
