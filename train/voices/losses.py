"""What the speech model minimises."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gptfl_jax.generators.speech.speecht5 import SpeechT5ForTextToSpeech, Step


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
