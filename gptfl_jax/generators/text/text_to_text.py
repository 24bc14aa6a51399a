"""Answers of T5 to texts: from files to a compiled program."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, Key

from gptfl_jax import artifacts, planning
from gptfl_jax.errors import UserError
from gptfl_jax.generators import placement
from gptfl_jax.generators.text import decoding
from gptfl_jax.generators.text.decoding import Decoding
from gptfl_jax.generators.text.t5 import (
    T5Config,
    T5Network,
    current_weights,
    network_shapes,
)
from gptfl_jax.generators.text.t5_tokenizer import LONGEST_TEXT, load_tokenizer
from gptfl_jax.released import hub, torch_weights
from gptfl_jax.released.model_config import building

# Texts are filled up to a multiple of this many tokens: few shapes to compile.
_LENGTH_STEP = 16


class T5:
    """Answers texts.

    Attributes:
        network: the network with its options and the dtype of computation.
        params: its parameters.
        tokenizer: of `transformers`, or any callable with its interface.
    """

    def __init__(
        self,
        network: T5Network,
        params: Mapping[str, Any],
        tokenizer: Any,
        devices: Sequence[jax.Device] | None = None,
    ):
        """`devices` are those of this process to split work over, by default those of
        `placement.mesh`."""
        self.network = network
        self.tokenizer = tokenizer
        self._mesh = placement.mesh(devices)
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        self.params = jax.device_put(dict(params), everywhere)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | pathlib.Path,
        *,
        dtype: DTypeLike = jnp.float32,
        revision: str | None = None,
    ) -> "T5":
        """Loads a model in the format of `transformers`.

        Args:
            path_or_id: a folder, or a Hugging Face repository.
            dtype: of parameters and computation: float32 or bfloat16.
            revision: branch, tag or commit of a repository.

        Raises:
            UserError: if there is no such model, a file is missing or damaged, or it is
                no T5.
        """
        folder, file = _fetch(path_or_id, revision)
        path = folder / "config.json"
        config = _read_config(folder)
        config, weights = current_weights(config, hub.open_weights(file))
        network = T5Network(config, dtype=jnp.dtype(dtype))
        with building(path):
            shapes = network_shapes(network)
        params = torch_weights.from_torch(
            shapes, weights, str(file), dtype=dtype, place=torch_weights.on_device
        )
        return cls(network, params, load_tokenizer(folder))

    def generate(
        self,
        texts: Sequence[str],
        how: Decoding,
        *,
        key: Key[Array, "*texts_sequences"] | None = None,
        num_sequences: int = 1,
    ) -> list[list[str]]:
        """Answers each text, with `num_sequences` answers.

        As `generate_tokens`; special tokens are left out. What is longer than the model
        takes is cut.

        Raises:
            ValueError: if the arguments do not fit together.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError("texts: takes a list of at least one text")
        tokens, mask = self._tokenize(texts)
        answers = self.generate_tokens(
            tokens, mask, how, key=key, num_sequences=num_sequences
        )
        return [
            self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            for rows in np.asarray(answers)
        ]

    def generate_tokens(
        self,
        tokens: Int[Array | np.ndarray, "texts length"],
        mask: Bool[Array | np.ndarray, "texts length"],
        how: Decoding,
        *,
        key: Key[Array, "*texts_sequences"] | None = None,
        num_sequences: int = 1,
    ) -> Int[Array, "texts num_sequences max_length"]:
        """Answers to texts of tokens.

        A sampled answer depends on its text, its key and `how`; the other texts and the
        number of devices change only rounding errors. Texts, or the answers where texts
        are few, are split over the devices.

        Args:
            tokens: of the texts, each with its end.
            mask: False where a text is filled up.
            how: greedy decoding, sampling or beam search, and their settings.
            key: for sampling: one, from which answer j of text i takes
                `fold_in(fold_in(key, i), j)`, or an array [texts, num_sequences].
            num_sequences: answers to each text; beam search gives its best ones.

        Returns:
            the answers without the start token, after their end filled up with padding.

        Raises:
            ValueError: if the arguments do not fit together.
        """
        texts = len(tokens)
        most = {"greedy": 1, "beam": how.num_beams}.get(how.method, num_sequences)
        if not 1 <= num_sequences <= most:
            raise ValueError(
                f"num_sequences = {num_sequences}: takes 1 to {most} with method "
                f"{how.method}"
            )
        keys = None
        if how.method == "sample":
            keys = _answer_keys(key, (texts, num_sequences))
        devices = self._mesh.size
        by_text = keys is None or texts >= devices
        rows = placement.filled(texts, devices if by_text else 1)
        columns = placement.filled(num_sequences, 1 if by_text else devices)
        tokens = np.asarray(tokens, np.int32)[rows]
        mask = np.asarray(mask, bool)[rows]
        if keys is not None:
            keys = keys[rows][:, columns]
        run = _program(self.network, self._mesh, how, by_text)
        answers = run(self.params, tokens, mask, keys)
        return answers[:texts, :num_sequences]

    def save_pretrained(self, folder: str | pathlib.Path) -> None:
        """Writes the model in the format of `transformers`, as safetensors.

        Files that are there already are replaced.
        """
        folder = pathlib.Path(folder)
        weights = torch_weights.to_torch(jax.device_get(self.params))
        hub.write_weights(folder / "model.safetensors", weights)
        self.tokenizer.save_pretrained(folder)
        artifacts.write_json(folder / "config.json", self.network.config.to_json())

    def _tokenize(self, texts):
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            pad_to_multiple_of=_LENGTH_STEP,
            max_length=min(self.tokenizer.model_max_length, LONGEST_TEXT),
            truncation=True,
            return_tensors="np",
        )
        mask = np.asarray(tokens.attention_mask, bool)
        tokens = np.asarray(tokens.input_ids, np.int32)
        known = self.network.config.vocab_size
        if tokens.max() >= known:
            raise UserError(
                f"the tokenizer makes token {tokens.max()}, but the network knows only "
                f"{known}: they belong to different models"
            )
        return tokens, mask


def _answer_keys(key, shape):
    if key is None:
        raise ValueError("takes a key to sample with")
    if key.ndim == 0:
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold(key, jnp.arange(shape[0]))
        return jax.vmap(fold, (0, None))(keys, jnp.arange(shape[1]))
    if key.shape != shape:
        raise ValueError(f"keys of shape {key.shape}: takes one, or {shape}")
    return key


def _answers(network: T5Network, how: Decoding) -> Callable[..., Array]:
    """The function from tokens to answers."""
    config = network.config
    marks = decoding.Marks(config.start_token, config.eos_token_id, config.pad_token_id)

    def answer(params, tokens, mask, keys):
        variables = {"params": params}
        text = network.apply(variables, tokens, mask, method="encode")

        def step(token, position, cache):
            logits, cache = network.apply(
                variables, token[:, None], position, cache, text, mask, method="decode"
            )
            return logits[:, 0], cache

        texts = len(tokens)
        each = how.num_beams if how.method == "beam" else 1
        each = each if keys is None else keys.shape[1]
        cache = network.empty_cache(texts * each, how.max_length)
        if how.method == "beam":
            return decoding.beam_search(step, cache, texts, marks, how)[0]
        keys = None if keys is None else keys.reshape(-1)
        answers = decoding.decode(step, cache, texts * each, marks, how, keys)
        return answers.reshape(texts, each, -1)

    return answer


@functools.lru_cache(maxsize=32)
def _program(
    network: T5Network, mesh: Mesh, how: Decoding, by_text: bool
) -> Callable[..., Int[Array, "texts sequences max_length"]]:
    """The compiled function from tokens to answers, split over the devices."""
    texts = PartitionSpec("data") if by_text else PartitionSpec()
    answers = PartitionSpec("data") if by_text else PartitionSpec(None, "data")
    return placement.compiled(
        _answers(network, how),
        mesh,
        (PartitionSpec(), texts, texts, answers),
        answers,
    )


class Lowered(NamedTuple):
    """What answering compiles, for arrays of some shapes."""

    params: dict[str, Any]
    """Shapes, on the devices."""
    program: jax.stages.Lowered
    reading: float
    """Floating-point operations for the text."""
    step: float
    """For a token of all answers."""


def lower(
    network: T5Network, how: Decoding, num_sequences: int, length: int = _LENGTH_STEP
) -> Lowered:
    """The program that draws answers to one text, without its arrays.

    Args:
        how: of the method "sample".
        num_sequences: answers.
        length: tokens of the text, filled up.
    """
    mesh = placement.mesh()
    params = planning.shapes(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, network.dtype),
            network_shapes(network),
        ),
        mesh,
    )
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, length), jnp.bool_)
    key = jax.eval_shape(jax.random.key, 0)
    columns = len(placement.filled(num_sequences, mesh.size))
    keys = jax.ShapeDtypeStruct((1, columns, *key.shape), key.dtype)

    def read(params, tokens, mask):
        return network.apply({"params": params}, tokens, mask, method="encode")

    reading = planning.flops(read, params, tokens, mask)
    # The loop over tokens counts once.
    once = planning.flops(_answers(network, how), params, tokens, mask, keys)
    program = _program(network, mesh, how, mesh.size == 1)
    lowered = program.lower(params, tokens, mask, keys)
    return Lowered(params, lowered, reading, once - reading)


def network_of(path_or_id: str | pathlib.Path, dtype: DTypeLike) -> T5Network:
    """The network by its config file alone, without weights.

    Of a T5-base with a name that says so it need not be there.

    Raises:
        UserError: as `T5.from_pretrained`.
    """
    try:
        folder = _find(path_or_id, None)
    except hub.ModelNotFound:
        if "t5-base" not in pathlib.PurePath(path_or_id).name:
            raise
        config = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)
    else:
        config = _read_config(folder)
    return T5Network(config, dtype=jnp.dtype(dtype))


def _read_config(folder: pathlib.Path) -> T5Config:
    path = folder / "config.json"
    options = hub.read_json(path)
    if options.get("model_type", "t5") != "t5":
        raise UserError(
            f"{path}: model_type = {options['model_type']!r}, which is no T5: name "
            "another model"
        )
    return T5Config.from_json(options, str(path))


def _find(path_or_id, revision) -> pathlib.Path:
    """The model's folder, with all but the weights."""
    patterns = ["config.json", "tokenizer*", "spiece.model", "special_tokens_map.json"]
    return hub.snapshot(path_or_id, patterns, revision)


def _fetch(path_or_id, revision) -> tuple[pathlib.Path, pathlib.Path]:
    """The model's folder, and the file with its weights."""
    folder = _find(path_or_id, revision)
    # The second is the name that transformers gave to its `.bin` files.
    stems = {"t5": ["model", "pytorch_model"]}
    return folder, hub.fetch_weights(folder, path_or_id, stems, revision)["t5"]
