"""T5, of version 1.0 and 1.1: encoder and decoder.

Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text
Transformer" (arXiv 1910.10683); Shazeer, "GLU Variants Improve Transformer"
(arXiv 2002.05202), for version 1.1.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub
from gptfl_jax.released.model_config import ModelConfig

# By a config file's name: the activation, and whether it gates a second projection.
_FEED_FORWARD = {
    "relu": (jax.nn.relu, False),
    "gated-gelu": (jax.nn.gelu, True),  # the tanh form
    "gated-silu": (jax.nn.silu, True),
}


@dataclasses.dataclass(frozen=True)
class T5Config(ModelConfig):
    """Options of `T5ForConditionalGeneration`; the defaults are the PyTorch class's.

    Attributes:
        vocab_size: number of tokens; may exceed the tokenizer's.
        d_model: features of a token.
        d_kv: features of an attention head.
        d_ff: features inside the feed-forward layers.
        num_layers: depth of the encoder.
        num_decoder_layers: depth of the decoder; the encoder's when None.
        num_heads: heads of each attention.
        relative_attention_num_buckets: distances that attention tells apart.
        relative_attention_max_distance: from here on all distances are one.
        layer_norm_epsilon: epsilon of the norms.
        feed_forward_proj: "relu" (version 1.0), "gated-gelu" (1.1) or "gated-silu".
        tie_word_embeddings: whether the embeddings are the output layer's weights.
        scale_decoder_outputs: whether outputs are divided by sqrt(d_model) before that
            layer; as `tie_word_embeddings` when None.
        pad_token_id: fills texts up.
        eos_token_id: ends texts.
        decoder_start_token_id: what an answer starts from; the padding when None.
    """

    torch_class: ClassVar[str] = "T5ForConditionalGeneration"
    # Files of `transformers` hold dozens of unrelated options.
    without_effect: ClassVar = None

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int | None = None
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None
    pad_token_id: int = 0
    eos_token_id: int = 1
    decoder_start_token_id: int | None = None

    def __post_init__(self):
        if self.feed_forward_proj not in _FEED_FORWARD:
            raise UserError(
                f"feed_forward_proj = {self.feed_forward_proj!r}: T5Config takes "
                + " or ".join(map(repr, _FEED_FORWARD))
            )

    def to_json(self):
        names = {"model_type": "t5", "architectures": [self.torch_class]}
        options = names | super().to_json()
        if self.scale_decoder_outputs is None:
            del options["scale_decoder_outputs"]
        return options | {
            "num_decoder_layers": self.decoder_layers,
            "decoder_start_token_id": self.start_token,
        }

    @property
    def decoder_layers(self) -> int:
        """Depth of the decoder."""
        layers = self.num_decoder_layers
        return self.num_layers if layers is None else layers

    @property
    def start_token(self) -> int:
        """What an answer starts from."""
        token = self.decoder_start_token_id
        return self.pad_token_id if token is None else token


class KeysValues(NamedTuple):
    """What an attention compares with and averages."""

    keys: Float[Array, "batch length heads features"]
    values: Float[Array, "batch length heads features"]


# Of each layer of the decoder: of the tokens so far, and of the encoded text.
Cache = tuple[KeysValues, ...]


def relative_buckets(
    queries: int, keys: int, num_buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, "queries keys"]:
    """Which learned bias belongs to a query's and a key's position.

    Half of the buckets are single distances, the others widen as their logarithm up to
    `max_distance`. A bidirectional table has half of its buckets for keys to the right;
    else these are all of distance 0, and masked.
    """
    offset = np.arange(keys)[None] - np.arange(queries)[:, None]
    if bidirectional:
        num_buckets //= 2
        first = np.where(offset > 0, num_buckets, 0)
        distance = np.abs(offset)
    else:
        first = 0
        distance = np.maximum(-offset, 0)
    exact = num_buckets // 2
    # In float32 and in this order, as PyTorch computes it: a rounding moves a border.
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact))
    ratio = ratio / np.float32(math.log(max_distance / exact))
    wide = exact + (ratio * np.float32(num_buckets - exact)).astype(np.int32)
    wide = np.minimum(wide, num_buckets - 1)
    return (first + np.where(distance < exact, distance, wide)).astype(np.int32)


class _Attention(linen.Module):
    """Attention without a scale; `relative` ones own the biases of the positions.

    Written out, as no fused kernel fits: a step has one query a sentence, over keys
    that several sentences share, and a bias for every head. What it never holds, the
    logits, is small here: prompts are tens of tokens.
    """

    config: T5Config
    dtype: DTypeLike
    relative: bool = False

    def setup(self):
        config = self.config

        def dense(features):
            return linen.Dense(features, use_bias=False, dtype=self.dtype)

        self.q, self.k, self.v = (
            dense(config.num_heads * config.d_kv) for _ in range(3)
        )
        self.o = dense(config.d_model)
        if self.relative:
            self.relative_attention_bias = linen.Embed(
                config.relative_attention_num_buckets, config.num_heads
            )

    def position_bias(self, buckets):
        """Biases [1, heads, queries, keys], in float32."""
        bias = self.relative_attention_bias(jnp.asarray(buckets))
        return jnp.moveaxis(bias, -1, 0)[None].astype(jnp.float32)

    def project(self, x) -> KeysValues:
        return KeysValues(*(self._heads(dense(x)) for dense in (self.k, self.v)))

    def __call__(self, x, context: KeysValues, bias):
        """Attends from `x` to `context`, of which each row may serve several of `x`."""
        query = self._heads(self.q(x))
        query = query.reshape(len(context.keys), -1, *query.shape[2:])
        logits = jnp.einsum(
            "bqhd,bkhd->bhqk", query, context.keys, preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits + bias, axis=-1).astype(context.values.dtype)
        outputs = jnp.einsum("bhqk,bkhd->bqhd", weights, context.values)
        return self.o(outputs.reshape(*x.shape[:2], -1))

    def _heads(self, x):
        return x.reshape(*x.shape[:2], self.config.num_heads, self.config.d_kv)


class _FeedForward(linen.Module):
    config: T5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        def dense(name, features, x):
            module = linen.Dense(features, use_bias=False, dtype=self.dtype, name=name)
            return module(x)

        activation, gated = _FEED_FORWARD[self.config.feed_forward_proj]
        if gated:
            hidden = activation(dense("wi_0", self.config.d_ff, x))
            hidden *= dense("wi_1", self.config.d_ff, x)
        else:
            hidden = activation(dense("wi", self.config.d_ff, x))
        return dense("wo", self.config.d_model, hidden)


class _Layer(linen.Module):
    """A norm and what follows it, which carries the name it has in PyTorch."""

    kind: str
    config: T5Config
    dtype: DTypeLike
    relative: bool = False

    def setup(self):
        self.layer_norm = _norm(self.config, self.dtype)
        if self.kind == "SelfAttention":
            self.SelfAttention = _Attention(self.config, self.dtype, self.relative)
        elif self.kind == "EncDecAttention":
            self.EncDecAttention = _Attention(self.config, self.dtype)
        else:
            self.DenseReluDense = _FeedForward(self.config, self.dtype)

    def inner(self):
        return getattr(self, self.kind)


class _Block(linen.Module):
    """A layer of the encoder, or with attention to the text one of the decoder."""

    config: T5Config
    dtype: DTypeLike
    decodes: bool
    relative: bool

    def setup(self):
        kinds = ["SelfAttention", "EncDecAttention", "DenseReluDense"]
        if not self.decodes:
            del kinds[1]
        self.layer = [
            _Layer(kind, self.config, self.dtype, self.relative) for kind in kinds
        ]

    def position_bias(self, buckets):
        return self.layer[0].inner().position_bias(buckets)

    def project_text(self, text) -> KeysValues:
        return self.layer[1].inner().project(text)

    def encode(self, x, bias):
        normed = self.layer[0].layer_norm(x)
        attend = self.layer[0].inner()
        return self._feed_forward(x + attend(normed, attend.project(normed), bias))

    def decode(self, x, start, bias, past: KeysValues, text: KeysValues, text_bias):
        """Tokens at `start` and after; also gives `past` with these in it."""
        normed = self.layer[0].layer_norm(x)
        attend = self.layer[0].inner()
        past = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(
                old, new.astype(old.dtype), start, axis=1
            ),
            past,
            attend.project(normed),
        )
        x += attend(normed, past, bias)
        x += self.layer[1].inner()(self.layer[1].layer_norm(x), text, text_bias)
        return self._feed_forward(x), past

    def _feed_forward(self, x):
        return x + self.layer[-1].inner()(self.layer[-1].layer_norm(x))


class _Stack(linen.Module):
    """The encoder or the decoder."""

    config: T5Config
    dtype: DTypeLike
    decodes: bool

    def setup(self):
        config = self.config
        layers = config.decoder_layers if self.decodes else config.num_layers
        self.block = [
            _Block(config, self.dtype, self.decodes, relative=i == 0)
            for i in range(layers)
        ]
        self.final_layer_norm = _norm(config, self.dtype)

    def _position_bias(self, length):
        config = self.config
        buckets = relative_buckets(
            length,
            length,
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
            bidirectional=not self.decodes,
        )
        return self.block[0].position_bias(buckets)

    def encode(self, x, mask):
        bias = self._position_bias(x.shape[1]) + _mask_bias(mask[:, None, None])
        for block in self.block:
            x = block.encode(x, bias)
        return self.final_layer_norm(x)

    def project_text(self, text) -> Cache:
        return tuple(block.project_text(text) for block in self.block)

    def decode(self, x, start, past: Cache, text: Cache, mask):
        length = past[0].keys.shape[1]
        causal = jnp.tril(jnp.ones((length, length), bool))
        bias = self._position_bias(length) + _mask_bias(causal[None, None])
        bias = jax.lax.dynamic_slice_in_dim(bias, start, x.shape[1], axis=2)
        text_bias = _mask_bias(mask[:, None, None])
        now = []
        for block, before, about in zip(self.block, past, text, strict=True):
            x, after = block.decode(x, start, bias, before, about, text_bias)
            now.append(after)
        return self.final_layer_norm(x), tuple(now)


def _norm(config, dtype):
    return linen.RMSNorm(config.layer_norm_epsilon, dtype=dtype)


def _mask_bias(mask):
    return jnp.where(mask, 0, jnp.finfo(jnp.float32).min)


class T5Network(linen.Module):
    """The encoder, the decoder and the output layer.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs, logits are float32.
    """

    config: T5Config
    dtype: DTypeLike = jnp.float32

    def setup(self):
        config = self.config
        self.shared = linen.Embed(
            config.vocab_size,
            config.d_model,
            dtype=self.dtype,
            embedding_init=linen.initializers.normal(1.0),
        )
        self.encoder = _Stack(config, self.dtype, decodes=False)
        self.decoder = _Stack(config, self.dtype, decodes=True)
        if not config.tie_word_embeddings:
            self.lm_head = linen.Dense(
                config.vocab_size, use_bias=False, dtype=self.dtype
            )

    def __call__(
        self,
        tokens: Int[Array, "texts length"],
        mask: Bool[Array, "texts length"],
        answers: Int[Array, "texts answer_length"],
    ) -> Float[Array, "texts answer_length vocabulary"]:
        """Logits of the token after each of `answers`.

        Answers begin with the start token; `mask` is False for padding.
        """
        past = self.empty_cache(*answers.shape)
        return self.decode(answers, 0, past, self.encode(tokens, mask), mask)[0]

    def encode(
        self, tokens: Int[Array, "texts length"], mask: Bool[Array, "texts length"]
    ) -> Cache:
        """Keys and values of the encoded texts, for each layer of the decoder."""
        return self.decoder.project_text(self.encoder.encode(self.shared(tokens), mask))

    def empty_cache(self, rows: int, length: int) -> Cache:
        """Room for the keys and values of `length` tokens in each row."""
        config = self.config
        room = jnp.zeros((rows, length, config.num_heads, config.d_kv), self.dtype)
        return (KeysValues(room, room),) * config.decoder_layers

    def decode(
        self,
        answers: Int[Array, "rows new"],
        start: int | Int[Array, ""],
        past: Cache,
        text: Cache,
        mask: Bool[Array, "texts length"],
    ) -> tuple[Float[Array, "rows new vocabulary"], Cache]:
        """Logits after the tokens at positions `start`, `start + 1`, ... of answers.

        Args:
            answers: the tokens there; rows come text by text, equally many for each.
            start: their first position, from 0.
            past: what this function gave for the positions before.
            text: what `encode` gave.
            mask: that of `encode`.

        Returns:
            the logits, and the cache for the next position.
        """
        config = self.config
        x, past = self.decoder.decode(self.shared(answers), start, past, text, mask)
        scaled = config.scale_decoder_outputs
        if config.tie_word_embeddings if scaled is None else scaled:
            x *= config.d_model**-0.5
        head = self.shared.attend if config.tie_word_embeddings else self.lm_head
        return head(x).astype(jnp.float32), past


def network_shapes(network: T5Network) -> dict[str, Any]:
    """The parameters, as `jax.ShapeDtypeStruct`s."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    return jax.eval_shape(network.init, jax.random.key(0), tokens, mask, tokens)[
        "params"
    ]


def current_weights(
    config: T5Config, weights: Mapping[str, np.ndarray]
) -> tuple[T5Config, Mapping[str, np.ndarray]]:
    """Weights without copies, and the config that fits them.

    Files hold the embeddings under one to four names. Whether the output layer has
    weights of its own is seen from them: configs of version 1.1 contradict each other.
    """
    # Each weight is read where it is needed, and not kept.
    readers = {name: functools.partial(weights.__getitem__, name) for name in weights}
    # Older files have biases here, which no version has used.
    readers.pop(
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", None
    )
    head = readers.pop("lm_head.weight", None)
    copies = [
        readers.pop(f"{stack}.embed_tokens.weight", None)
        for stack in ("encoder", "decoder")
    ]
    for copy in (*copies, head):
        if "shared.weight" not in readers and copy is not None:
            readers["shared.weight"] = copy
    tied = head is None or np.array_equal(head(), readers["shared.weight"]())
    if not tied:
        readers["lm_head.weight"] = head
    scaled = config.scale_decoder_outputs
    config = dataclasses.replace(
        config,
        tie_word_embeddings=tied,
        scale_decoder_outputs=config.tie_word_embeddings if scaled is None else scaled,
    )
    return config, hub.Weights(readers)
