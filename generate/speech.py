"""Stage 1b for spoken words: synthetic clips of every class, in `<workdir>/synthetic`.

    python -m generate.prompts --config=configs/fsdd.py --workdir=runs/fsdd
    python -m generate.speech  --config=configs/fsdd.py --workdir=runs/fsdd

`generate.model` names a SpeechT5: "voices", which ships with this package,
or another, as "microsoft/speecht5_tts"; words that are no classes of a known data set
stand in `prompts.classes`, with the template "{name}". Needs `<workdir>/prompts.json`
of generate.prompts.

Clips are 16-bit WAV files at the vocoder's rate (16 kHz), without the silence at their
ends. With the method `multi_speaker` every speaker vector can be drawn, else number 0
speaks; `config.generate.speakers` chooses others. Recordings are never as clean as what
a vocoder makes: `config.generate.snr_db` adds white noise. Started again after an
interruption it goes on where it stopped; asked for more samples it adds them. A sample
depends on the config, its class and its number alone, so batch size, devices and
processes may change in between.
"""

import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from generate import clips, samples
from gptfl_jax import planning
from gptfl_jax.artifacts import Sample
from gptfl_jax.data import audio
from gptfl_jax.data.noise import Noise, add_noise
from gptfl_jax.errors import ConfigError, UserError
from gptfl_jax.generators.speech import text_to_speech
from gptfl_jax.generators.speech.speakers import Speakers, read_speakers, speakers_of
from gptfl_jax.generators.speech.text_to_speech import (
    TextToSpeech,
    networks_of,
    vocoder_of,
)
from gptfl_jax.launch import launch, prepare
from gptfl_jax.progress import say
from gptfl_jax.released import hub


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the clips that are missing, and the preview."""
    prepare(config)
    _check(config)
    prompts, made_prompts = samples.read_prompts(workdir, config)
    counts = samples.samples_per_class(config, list(prompts))
    options = config.generate
    vocoder = options.vocoder or vocoder_of(options.model)
    speakers = read_speakers(options.speaker_vectors or speakers_of(options.model))
    method = made_prompts.get("method", config.prompts.method)
    numbers = speaker_numbers(config, method, len(speakers.names))
    choices = [
        {"guidance": None, "speaker": number, "snr_db": snr_db}
        for number in numbers
        for snr_db in tuple(options.snr_db) or (None,)
    ]
    planned = samples.plan(config, prompts, counts, choices, ".wav")
    voices = "1 speaker" if len(numbers) == 1 else f"{len(numbers):,} speaker vectors"
    samples.make(
        config,
        workdir,
        samples.Work(
            "clips",
            planned,
            _settings(config, prompts, vocoder, speakers, numbers),
            f"{voices}, at most {options.max_seconds:g} s",
            audio.is_whole_wav,
            lambda: _load(config, workdir, vocoder, speakers),
            clips.draw_preview,
        ),
    )


def speaker_numbers(config: ConfigDict, method: str, count: int) -> tuple[int, ...]:
    """Numbers of the speaker vectors that each sample's is drawn from.

    Those of `config.generate.speakers`; where it has none, all of `count` for the
    prompt method multi_speaker, else number 0.

    Raises:
        UserError: there is no such vector.
    """
    chosen = tuple(config.generate.speakers)
    if not chosen:
        return tuple(range(count)) if method == "multi_speaker" else (0,)
    if max(chosen) >= count:
        raise UserError(
            f"config.generate.speakers = {chosen}: takes numbers below {count}, the "
            "number of the speaker vectors"
        )
    return chosen


def _load(
    config: ConfigDict,
    workdir: pathlib.Path,
    vocoder: str | pathlib.Path,
    speakers: Speakers,
) -> samples.Maker:
    options = config.generate
    pipeline = TextToSpeech.from_pretrained(options.model, vocoder, dtype=options.dtype)

    def make_batch(rows: Sequence[Sample]) -> tuple[Any, ...]:
        waves, lengths = pipeline(
            [sample.prompt for sample in rows],
            speakers.vectors[[sample.speaker for sample in rows]],
            key=samples.keys(rows),
            threshold=options.stop_threshold,
            max_seconds=options.max_seconds,
        )
        snr_db = np.asarray([sample.snr_db for sample in rows], float)
        return waves, lengths, snr_db, np.asarray([sample.seed for sample in rows])

    rate = pipeline.vocoder.config.sampling_rate
    encode = functools.partial(_encode, rate=rate, trim_db=options.trim_db)
    return samples.Maker(
        make_batch,
        encode,
        pipeline.tokenizer,
        lambda: plan(config, workdir, counted_only=True),
    )


def _encode(clip: tuple[np.ndarray, ...], rate: int, trim_db: float) -> bytes:
    wave, length, snr_db, seed = clip
    wave = audio.trim_silence(wave[: int(length)], rate, trim_db)
    if not np.isnan(snr_db):
        wave = add_noise(wave, Noise(float(snr_db), (int(seed),)))
    return audio.encode_wav(wave, rate)


def _settings(
    config: ConfigDict,
    prompts: Mapping[str, Sequence[str]],
    vocoder: str | pathlib.Path,
    speakers: Speakers,
    numbers: Sequence[int],
) -> dict[str, Any]:
    """What the sound of a sample depends on, by the names a refusal shows."""
    options = config.generate
    names = (
        *("model", "vocoder", "stop_threshold", "max_seconds", "trim_db", "snr_db"),
        "dtype",
    )
    everyone = tuple(numbers) == tuple(range(len(speakers.names)))
    content = hashlib.sha256(speakers.vectors.tobytes()).hexdigest()
    others = {
        "speakers": f"all {len(numbers)}" if everyone else list(numbers),
        "content of the speaker vectors": f"sha256:{content}",
        "content of the model's files": hub.model_digest(options.model),
        "content of the vocoder's files": hub.model_digest(vocoder),
    }
    return samples.settings(config, names, others, prompts)


def _check(config: ConfigDict) -> None:
    if config.generate.dtype == "float16":
        raise ConfigError(
            "config.generate.dtype = 'float16': speech takes float32 or bfloat16"
        )


def dry_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Says what a run would take."""
    prepare(config)
    _check(config)
    say(planning.table(plan(config, workdir)))


def plan(
    config: ConfigDict, workdir: pathlib.Path, counted_only: bool = False
) -> planning.Plan:
    """What a run takes at most: the networks by their config files.

    Args:
        counted_only: whether operations alone are of interest.

    Raises:
        UserError: the model is unknown, or the classes.
    """
    options = config.generate
    outline = samples.outline(config, workdir)
    model, vocoder = networks_of(options.model, options.vocoder, options.dtype)
    letters = max(len(text) for texts in outline.prompts.values() for text in texts)
    lowered = text_to_speech.lower(
        model,
        vocoder,
        batch=outline.batch,
        letters=letters,
        max_seconds=options.max_seconds,
        counted_only=counted_only,
    )
    sizes = {
        name: planning.amount(planning.parameters(tree))
        for name, tree in lowered.variables.items()
    }
    facts = [
        (
            "model",
            f"{options.model} in {options.dtype}: {sizes['model']} parameters, its "
            f"vocoder {sizes['vocoder']}",
        ),
        *outline.facts(config, "clips"),
        (
            "speaking",
            f"texts of {letters} letters at most, {lowered.flops['steps of speech'][1]}"
            " steps at most; most clips end sooner",
        ),
    ]
    smaller = "lower config.generate.batch_size or max_seconds"
    return planning.Plan(
        "generate.speech",
        facts,
        resident=[
            planning.Resident(
                "weights", lowered.variables, "set config.generate.dtype='bfloat16'"
            )
        ],
        programs=[
            planning.Program(name, program, smaller)
            for name, program in lowered.programs.items()
        ],
        work=[
            planning.Work(name, flops, times * outline.batches)
            for name, (flops, times) in lowered.flops.items()
        ],
    )


def main() -> None:
    launch(
        run,
        sections=("data", "prompts", "generate"),
        dry_run=dry_run,
        then=samples.then,
    )


if __name__ == "__main__":
    main()
