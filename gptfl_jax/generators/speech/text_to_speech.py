"""Text to speech with SpeechT5 and HiFi-GAN.

Ao et al., "SpeechT5: Unified-Modal Encoder-Decoder Pre-Training for Spoken Language
Processing" (arXiv 2110.07205); Kong et al., "HiFi-GAN" (arXiv 2010.05646).
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int32, Key

from gptfl_jax import artifacts, planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT
from gptfl_jax.generators.speech import hifigan, speecht5
from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config, SpeechT5ForTextToSpeech
from gptfl_jax.released import hub, torch_weights
from gptfl_jax.released.model_config import building

_TOKENIZER_FILES = ["*token*.json", "*.model", "vocab.json", "merges.txt"]
_STEMS = ("model", "pytorch_model")

# For models that have no vocoder of their own.
_VOCODER = "microsoft/speecht5_hifigan"


class TextToSpeech:
    """Speaks texts in the voices of speakers.

    Attributes:
        model: makes spectrograms; holds its config and the dtype of computation.
        vocoder: makes waveforms of them, likewise.
        variables: "model" and "vocoder": the variables of each.
        tokenizer: of `transformers`, or any callable with its interface.
    """

    def __init__(
        self,
        model: SpeechT5ForTextToSpeech,
        vocoder: HifiGan,
        variables: Mapping[str, Any],
        tokenizer: Any,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts a pipeline together from its parts.

        `devices` are those of this process to split batches over, by default those of
        `placement.mesh`.

        Raises:
            UserError: if the parts do not fit together.
        """
        if model.config.num_mel_bins != vocoder.config.model_in_dim:
            raise UserError(
                f"the vocoder reads {vocoder.config.model_in_dim} mel bands, but the "
                f"speech model makes {model.config.num_mel_bins}: name a vocoder that "
                "was trained for it"
            )
        self.model = model
        self.vocoder = vocoder
        self.tokenizer = tokenizer
        self._mesh = placement.mesh(devices)
        everywhere = NamedSharding(self._mesh, EVERYWHERE)
        self.variables = jax.device_put(dict(variables), everywhere)

    @classmethod
    def from_pretrained(
        cls,
        model: str | pathlib.Path,
        vocoder: str | pathlib.Path = "",
        *,
        dtype: DTypeLike = jnp.float32,
    ) -> "TextToSpeech":
        """Loads a SpeechT5 model and a HiFi-GAN in the format of `transformers`.

        Args:
            model: a folder, a model shipped with this package, or a Hugging Face
                repository, as "microsoft/speecht5_tts".
            vocoder: likewise; empty: `vocoder_of(model)`.
            dtype: of parameters and computation: float32 or bfloat16.

        Raises:
            UserError: if there is no such model, a file is missing or damaged, or it is
                not a model of this kind.
        """
        dtype = jnp.dtype(dtype)
        folder = _find(model)
        path = folder / "config.json"
        network = _read_model(folder, dtype)
        file = hub.fetch_weights(folder, model, {"": _STEMS})[""]
        with building(path):
            shapes = speecht5.shapes(network)
        variables = {
            "model": torch_weights.variables_from_torch(
                shapes,
                hub.open_weights(file),
                str(file),
                speecht5.current_name,
                dtype,
                torch_weights.on_device,
            )
        }
        tokenizer = hub.load_tokenizer(folder, "SpeechT5Tokenizer")
        vocoder = vocoder or vocoder_of(model)
        folder = hub.snapshot(vocoder, ["config.json"])
        path = folder / "config.json"
        vocoder_network = _read_vocoder(folder, dtype)
        file = hub.fetch_weights(folder, vocoder, {"": _STEMS})[""]
        weights = hub.read_weights(file)
        with building(path):
            variables["vocoder"] = hifigan.from_torch(
                vocoder_network, weights, str(file), dtype
            )
        return cls(network, vocoder_network, variables, tokenizer)

    def __call__(
        self,
        texts: Sequence[str],
        speaker_embeddings: ArrayLike,
        *,
        key: Key[Array, "*samples"] | None = None,
        threshold: int | float = 0.5,
        max_seconds: int | float = 10.0,
        max_frames_per_token: int | float = 20.0,
        keep: ArrayLike | None = None,
    ) -> tuple[Float[Array, "batch samples"], Int32[np.ndarray, " batch"]]:
        """Speaks each text.

        A sample depends on its text, speaker and key and nothing else: the rest of the
        batch and the number of devices change only rounding errors.

        Args:
            texts: what to say, in characters that the model knows.
            speaker_embeddings: a vector for each text's voice, or one for all.
            key: for the dropout that is part of the model: one, from which sample i
                takes `fold_in(key, i)`, or an array with one for each sample.
            threshold: speech ends where its probability to do so, summed over the
                frames of a step, is this high.
            max_seconds: longest speech.
            max_frames_per_token: longest speech for the length of its text.
            keep: which units the dropout keeps, [batch or 1, steps, layers, units] of
                booleans; drawn when None.

        Returns:
            Waveforms in [-1, 1] at `self.vocoder.config.sampling_rate` Hz, 0 from their
            length on, and the number of samples of each.

        Raises:
            UserError: if a text is too long or holds unknown characters, or the vectors
                are not of the size that the model knows.
            ValueError: if the arguments do not fit together.
        """
        mels, lengths = self.spectrograms(
            texts,
            speaker_embeddings,
            key=key,
            threshold=threshold,
            max_seconds=max_seconds,
            max_frames_per_token=max_frames_per_token,
            keep=keep,
        )
        batch = len(texts)
        vocode = _programs(self.model, self.vocoder, self._mesh).vocode
        inputs = placement.split((mels, lengths), self._mesh)
        waves = vocode(self.variables["vocoder"], *inputs)
        samples = self.vocoder.config.num_samples(lengths)
        return waves[:batch], samples

    def spectrograms(
        self,
        texts: Sequence[str],
        speaker_embeddings: ArrayLike,
        *,
        key: Key[Array, "*samples"] | None = None,
        threshold: int | float = 0.5,
        max_seconds: int | float = 10.0,
        max_frames_per_token: int | float = 20.0,
        keep: ArrayLike | None = None,
    ) -> tuple[Float[Array, "batch frames mels"], Int32[np.ndarray, " batch"]]:
        """The log-mel spectrograms that are spoken, and the frames of each.

        Arguments and errors are those of `__call__`; a spectrogram is 0 from its length
        on.
        """
        config, batch = self.model.config, len(texts)
        if isinstance(texts, str) or not batch:
            raise ValueError("texts: takes a list of at least one text")
        tokens = self._tokenize(texts)
        limits, most = self._limits(tokens, max_seconds, max_frames_per_token)
        speakers = self._speakers(speaker_embeddings, batch)
        if keep is not None:
            keep = np.asarray(keep, bool)
            layers = config.speech_decoder_prenet_layers
            units = config.speech_decoder_prenet_units
            if (
                keep.ndim != 4
                or keep.shape[0] not in (1, batch)
                or keep.shape[1] < limits.max()
                or keep.shape[2:] != (layers, units)
            ):
                raise ValueError(
                    f"keep of shape {keep.shape}: takes ({batch} or 1, {limits.max()} "
                    f"or more, {layers}, {units})"
                )
            keep, drawn = np.broadcast_to(keep, (batch, *keep.shape[1:])), None
        elif key is None:
            raise ValueError("takes a key to draw the model's dropout from, or keep")
        else:
            drawn = placement.sample_keys(key, batch, "texts")
        programs = _programs(self.model, self.vocoder, self._mesh)
        inputs = placement.split(
            _Inputs(tokens, speakers, limits, drawn, keep), self._mesh
        )
        mels, steps = programs.speak(most)(
            self.variables["model"], inputs, jnp.float32(threshold)
        )
        lengths = np.asarray(steps) * config.reduction_factor
        frames = min(_rounded_up(int(lengths.max())), mels.shape[1])
        mels = programs.refine(frames)(
            self.variables["model"], mels, placement.split(lengths, self._mesh)
        )
        return mels[:batch], lengths[:batch]

    def save_pretrained(
        self,
        folder: str | pathlib.Path,
        vocoder_folder: str | pathlib.Path,
        dtype: DTypeLike | None = None,
    ) -> None:
        """Writes both networks and the tokenizer in the format of `transformers`.

        Args:
            folder: of the speech model; files that are there already are replaced.
            vocoder_folder: of the vocoder, likewise.
            dtype: of the weights; by default as they are.
        """
        variables = jax.device_get(self.variables)
        self.tokenizer.save_pretrained(folder)
        for path, config, weights in (
            (folder, self.model.config, speecht5.to_torch(variables["model"])),
            (
                vocoder_folder,
                self.vocoder.config,
                hifigan.to_torch(variables["vocoder"]),
            ),
        ):
            path = pathlib.Path(path)
            if dtype is not None:
                weights = {
                    name: value.astype(dtype) if value.dtype.kind != "i" else value
                    for name, value in weights.items()
                }
            hub.write_weights(path / "model.safetensors", weights)
            # Last: a folder with a config is a whole one.
            artifacts.write_json(path / "config.json", config.to_json())

    def _tokenize(self, texts):
        """Tokens of each text, filled up with padding to a common length."""
        config = self.model.config
        rows = self.tokenizer(list(texts)).input_ids
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        for text, row in zip(texts, rows, strict=True):
            if unknown is not None and unknown in row:
                raise UserError(
                    f"text {text!r} holds characters that the speech model does not "
                    "know: spell it in the letters of its language, numbers as words"
                )
            if len(row) > config.max_text_positions:
                raise UserError(
                    f"text {text[:40]!r}... has {len(row)} tokens, the speech model "
                    f"takes {config.max_text_positions}: give shorter texts"
                )
            if max(row) >= config.vocab_size:
                raise UserError(
                    f"the tokenizer makes token {max(row)}, but the speech model knows "
                    f"only {config.vocab_size}: they belong to different models"
                )
        length = min(_rounded_up(max(map(len, rows))), config.max_text_positions)
        tokens = np.full((len(rows), length), config.pad_token_id, np.int32)
        for row, filled in zip(rows, tokens, strict=True):
            filled[: len(row)] = row
        return tokens

    def _limits(self, tokens, max_seconds, max_frames_per_token):
        """Most steps of each text, and of any of this length when filled up."""
        config = self.model.config
        seconds = _most_steps(config, self.vocoder.config, max_seconds)
        lengths = (tokens != config.pad_token_id).sum(1)
        ratio = max_frames_per_token / config.reduction_factor
        limits = np.clip((lengths * ratio).astype(np.int32), 1, seconds)
        return limits, int(np.clip(int(tokens.shape[1] * ratio), 1, seconds))

    def _speakers(self, embeddings, batch):
        embeddings = np.asarray(embeddings, np.float32)
        size = self.model.config.speaker_embedding_dim
        if embeddings.shape not in ((size,), (1, size), (batch, size)):
            raise UserError(
                f"speaker embeddings of shape {embeddings.shape}: the speech model "
                f"takes one of {size} numbers, or one for each of {batch} texts"
            )
        return np.broadcast_to(embeddings, (batch, size))


def _find(model) -> pathlib.Path:
    """The folder of a SpeechT5."""
    patterns = ["config.json", "model_index.json", *_TOKENIZER_FILES]
    folder = hub.snapshot(model, patterns)
    kind = hub.kind(folder)
    if kind not in ("", "speecht5"):
        raise UserError(
            f"{model}: {kind} is no SpeechT5: name another model, as 'voices'"
        )
    return folder


def _read_model(folder, dtype) -> SpeechT5ForTextToSpeech:
    path = folder / "config.json"
    config = SpeechT5Config.from_json(hub.read_json(path), str(path))
    return SpeechT5ForTextToSpeech(config, jnp.dtype(dtype))


def _read_vocoder(folder, dtype) -> HifiGan:
    path = folder / "config.json"
    config = HifiGanConfig.from_json(hub.read_json(path), str(path))
    return HifiGan(config, jnp.dtype(dtype))


def networks_of(
    model: str | pathlib.Path,
    vocoder: str | pathlib.Path = "",
    dtype: DTypeLike = jnp.float32,
) -> tuple[SpeechT5ForTextToSpeech, HifiGan]:
    """The networks by their config files alone, without weights.

    Of Microsoft's releases these need not be there.

    Raises:
        UserError: as `TextToSpeech.from_pretrained`.
    """
    try:
        network = _read_model(_find(model), dtype)
        vocoder = vocoder or vocoder_of(model)
    except hub.ModelNotFound:
        if pathlib.PurePath(model).name != "speecht5_tts":
            raise
        network = SpeechT5ForTextToSpeech(SpeechT5Config(), jnp.dtype(dtype))
        vocoder = vocoder or _VOCODER
    try:
        return network, _read_vocoder(hub.snapshot(vocoder, ["config.json"]), dtype)
    except hub.ModelNotFound:
        if pathlib.PurePath(vocoder).name != "speecht5_hifigan":
            raise
        return network, HifiGan(HifiGanConfig(), jnp.dtype(dtype))


def vocoder_of(model: str | pathlib.Path) -> str | pathlib.Path:
    """The folder `vocoder` of a model, or the one that SpeechT5 was released with.

    Raises:
        UserError: there is no such model, or it is of another kind.
    """
    _find(model)
    return hub.part(model, "vocoder", ["*"]) or _VOCODER


def _rounded_up(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: few programs, little padding."""
    power = 16
    while power < length:
        if 3 * power // 2 >= length:
            return 3 * power // 2
        power *= 2
    return power


def _most_steps(
    config: SpeechT5Config, vocoder: HifiGanConfig, max_seconds: int | float
) -> int:
    """Steps of the longest speech."""
    rate = vocoder.sampling_rate
    per_step = config.reduction_factor * math.prod(vocoder.upsample_rates)
    steps = min(int(max_seconds * rate / per_step + 1e-6), config.max_speech_positions)
    if steps < 1:
        raise UserError(
            f"max_seconds = {max_seconds}: takes at least {per_step / rate:g}, a step "
            "of the model"
        )
    return steps


class _Inputs(NamedTuple):
    """Of a batch; every row belongs to a sample. One of the last two is None."""

    tokens: Any
    speakers: Any
    limits: Any
    keys: Any
    keep: Any


class _Programs(NamedTuple):
    speak: Callable
    refine: Callable
    vocode: Callable


def _functions(model) -> tuple[Callable, Callable]:
    """What speaking consists of beside the vocoder: `speak` and `refine`."""
    config = model.config
    units = (config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units)

    def speak(most, variables, inputs, threshold):
        def apply(method, *arguments):
            return model.apply(variables, *arguments, method=method)

        mask = inputs.tokens != config.pad_token_id
        text = apply("text", apply("encode", inputs.tokens, mask))
        batch, bands = len(inputs.tokens), config.num_mel_bins

        def draw(key, step):
            share = config.speech_decoder_prenet_dropout
            return jax.random.bernoulli(jax.random.fold_in(key, step), share, units)

        def body(carry):
            step, state, mels, steps = carry
            frame = jax.lax.dynamic_index_in_dim(mels, step, keepdims=False)[:, -1]
            if inputs.keep is None:
                keep = jax.vmap(draw, (0, None))(inputs.keys, step)
            else:
                keep = jax.lax.dynamic_index_in_dim(inputs.keep, step, 1, False)
            made, state = apply(
                "step", frame, inputs.speakers, keep, state, text, mask, step
            )
            mels = jax.lax.dynamic_update_index_in_dim(mels, made.frames, step + 1, 0)
            step += 1
            ends = (made.stop.sum(-1) >= threshold) | (step >= inputs.limits)
            return step, state, mels, jnp.where((steps == 0) & ends, step, steps)

        # The first row is the silence that the first step follows.
        mels = jnp.zeros((most + 1, batch, config.reduction_factor, bands))
        carry = (
            jnp.int32(0),
            apply("start", batch, most),
            mels,
            jnp.zeros(batch, jnp.int32),
        )
        _, _, mels, steps = jax.lax.while_loop(
            lambda carry: (carry[3] == 0).any(), body, carry
        )
        mels = mels[1:].swapaxes(0, 1).reshape(batch, -1, bands)
        return mels, steps

    def refine(frames, variables, mels, lengths):
        return model.apply(variables, mels[:, :frames], lengths, method="refine")

    return speak, refine


@functools.lru_cache(maxsize=8)
def _programs(model, vocoder, mesh) -> _Programs:
    """The compiled parts of speaking, each split over the devices of `mesh`.

    Devices wait for each other only where a part ends. Convolutions stand outside of
    the loop, where their forms are those that are fastest for large networks.
    """
    speak, refine = _functions(model)

    def split(function, *specs):
        """`function`, whose first argument is static, over the devices."""

        @functools.cache
        def program(static):
            bound = functools.partial(function, static)
            return placement.compiled(bound, mesh, specs)

        return program

    return _Programs(
        speak=split(speak, EVERYWHERE, SPLIT, EVERYWHERE),
        refine=split(refine, EVERYWHERE, SPLIT, SPLIT),
        vocode=placement.compiled(vocoder.apply, mesh, (EVERYWHERE, SPLIT, SPLIT)),
    )


class Lowered(NamedTuple):
    """What speaking compiles, for arrays of some shapes."""

    variables: dict[str, Any]
    """Shapes, on the devices."""
    programs: dict[str, jax.stages.Lowered]
    """By what they do."""
    flops: dict[str, tuple[float, int]]
    """By what is done: floating-point operations, and how often at most for a batch."""


def lower(
    model: SpeechT5ForTextToSpeech,
    vocoder: HifiGan,
    *,
    batch: int,
    letters: int,
    max_seconds: int | float = 10.0,
    max_frames_per_token: int | float = 20.0,
    counted_only: bool = False,
) -> Lowered:
    """The programs that speak a batch, without their arrays.

    Args:
        model: of the networks, as `vocoder`.
        batch: texts.
        letters: of the longest.
        max_seconds: as `TextToSpeech.__call__` takes it, as the next.
        max_frames_per_token: see there.
        counted_only: whether no programs are lowered.
    """
    config, mesh = model.config, placement.mesh()
    rows = -(-batch // mesh.size) * mesh.size

    def cast(x):
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, model.dtype if floating else x.dtype)

    variables = {"model": speecht5.shapes(model), "vocoder": hifigan.shapes(vocoder)}
    variables = planning.shapes(jax.tree.map(cast, variables), mesh)

    def split(dtype, *shape):
        like = jax.ShapeDtypeStruct((rows, *shape), dtype)
        return planning.shapes(like, mesh, SPLIT)

    # A letter is a token, and the end is one.
    tokens = min(_rounded_up(letters + 1), config.max_text_positions)
    most = _most_steps(config, vocoder.config, max_seconds)
    ratio = max_frames_per_token / config.reduction_factor
    most = int(np.clip(int(tokens * ratio), 1, most))
    frames = most * config.reduction_factor
    key = jax.eval_shape(jax.random.key, 0)
    inputs = _Inputs(
        split(jnp.int32, tokens),
        split(jnp.float32, config.speaker_embedding_dim),
        split(jnp.int32),
        split(key.dtype, *key.shape),
        None,
    )
    threshold = jax.ShapeDtypeStruct((), jnp.float32)
    mels = split(jnp.float32, frames, config.num_mel_bins)
    lengths = split(jnp.int32)
    compiled = _programs(model, vocoder, mesh)
    speaking = variables["model"], inputs, threshold
    refining = variables["model"], mels, lengths
    vocoding = variables["vocoder"], mels, lengths
    speak, refine = _functions(model)

    def read(variables, tokens):
        mask = tokens != config.pad_token_id
        text = model.apply(variables, tokens, mask, method="encode")
        return model.apply(variables, text, method="text")

    reading = planning.flops(read, variables["model"], inputs.tokens)
    # Its loop counts once: the texts, and a step.
    once = planning.flops(functools.partial(speak, most), *speaking)
    return Lowered(
        variables,
        {}
        if counted_only
        else {
            "speaking": compiled.speak(most).lower(*speaking),
            "refining": compiled.refine(frames).lower(*refining),
            "the vocoder": compiled.vocode.lower(*vocoding),
        },
        {
            "texts": (reading, 1),
            "steps of speech": (once - reading, most),
            "refining": (
                planning.flops(functools.partial(refine, frames), *refining),
                1,
            ),
            "the vocoder": (planning.flops(vocoder.apply, *vocoding), 1),
        },
    )
