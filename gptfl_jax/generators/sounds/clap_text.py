"""The text tower of CLAP (`ClapTextModelWithProjection`), as AudioLDM uses it.

Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and
Keyword-to-Caption Augmentation" (arXiv 2211.06687). The encoder is RoBERTa's (Liu et
al., arXiv 1907.11692).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from gptfl_jax import nn
from gptfl_jax.errors import UserError
from gptfl_jax.generators.attention import attention
from gptfl_jax.released.model_config import ModelConfig

# The least norm that an embedding is divided by, as PyTorch's `normalize` has it.
_LEAST_NORM = 1e-12
_ENTRIES_WITHOUT_WEIGHTS = ("position_ids", "token_type_ids")


@dataclasses.dataclass(frozen=True)
class CLAPTextConfig(ModelConfig):
    """Options of `ClapTextModelWithProjection`; defaults are the PyTorch class's.

    Attributes:
        vocab_size: number of tokens.
        hidden_size: features of a token.
        intermediate_size: features inside the feed-forward layers.
        num_hidden_layers: depth.
        num_attention_heads: heads of each attention.
        max_position_embeddings: rows of the table of positions, whose first is that of
            the token after `pad_token_id` + 1 others.
        type_vocab_size: kinds of tokens; all are of the first.
        hidden_act: "gelu", the exact one.
        layer_norm_eps: epsilon of the norms.
        projection_dim: of CLAP's joint space.
        projection_hidden_act: "relu".
        pad_token_id: the token that fills a prompt up, which no other sees.
        bos_token_id: no effect here, as the next: prompts come as tokens.
        eos_token_id: see above.
    """

    torch_class: ClassVar[str] = "ClapTextModelWithProjection"
    # Files of `transformers` hold dozens of unrelated options.
    without_effect: ClassVar = None
    fixed: ClassVar = {"position_embedding_type": ("absolute", None)}

    vocab_size: int = 50265
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    projection_dim: int = 512
    projection_hidden_act: str = "relu"
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2

    def __post_init__(self):
        for name, known in (("hidden_act", "gelu"), ("projection_hidden_act", "relu")):
            if getattr(self, name) != known:
                raise UserError(
                    f"{name} = {getattr(self, name)!r}: CLAPTextConfig takes {known!r}"
                )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size = {self.hidden_size}: CLAPTextConfig takes a multiple of "
                f"num_attention_heads = {self.num_attention_heads}"
            )
        if self.longest < 1:
            raise UserError(
                f"max_position_embeddings = {self.max_position_embeddings}: "
                f"CLAPTextConfig takes more than pad_token_id + 1"
            )

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def to_json(self):
        names = {"model_type": "clap_text_model", "architectures": [self.torch_class]}
        return names | super().to_json()


class _Part(linen.Module):
    config: CLAPTextConfig
    dtype: DTypeLike

    def dense(self, name, features, x):
        return nn.Dense(features, dtype=self.dtype, name=name)(x)

    def norm(self, x):
        epsilon = self.config.layer_norm_eps
        return nn.LayerNorm(epsilon, dtype=self.dtype, name="LayerNorm")(x)


class _Embeddings(_Part):
    @linen.compact
    def __call__(self, tokens):
        config = self.config

        def embed(name, count, ids):
            module = linen.Embed(
                count,
                config.hidden_size,
                dtype=self.dtype,
                embedding_init=linen.initializers.normal(0.02),
                name=name,
            )
            return module(ids)

        real = (tokens != config.pad_token_id).astype(jnp.int32)
        # Padding has a position of its own, and a prompt's first token the next.
        positions = jnp.cumsum(real, axis=1) * real + config.pad_token_id
        x = embed("word_embeddings", config.vocab_size, tokens)
        x += embed(
            "token_type_embeddings", config.type_vocab_size, jnp.zeros_like(tokens)
        )
        x += embed("position_embeddings", config.max_position_embeddings, positions)
        return self.norm(x)


class _SelfAttention(_Part):
    @linen.compact
    def __call__(self, x, mask):
        def heads(name):
            y = self.dense(name, x.shape[-1], x)
            return y.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

        query, key, value = (heads(name) for name in ("query", "key", "value"))
        return attention(query, key, value, mask=mask).reshape(x.shape)


class _Output(_Part):
    """A matrix, then the norm of the sum with the residual path."""

    @linen.compact
    def __call__(self, x, residual):
        return self.norm(self.dense("dense", residual.shape[-1], x) + residual)


class _Attention(_Part):
    @linen.compact
    def __call__(self, x, mask):
        attended = _SelfAttention(self.config, self.dtype, name="self")(x, mask)
        return _Output(self.config, self.dtype, name="output")(attended, x)


class _Intermediate(_Part):
    @linen.compact
    def __call__(self, x):
        x = self.dense("dense", self.config.intermediate_size, x)
        return jax.nn.gelu(x, approximate=False)


class _Layer(_Part):
    @linen.compact
    def __call__(self, x, mask):
        def make(kind, name):
            return kind(self.config, self.dtype, name=name)

        x = make(_Attention, "attention")(x, mask)
        return make(_Output, "output")(make(_Intermediate, "intermediate")(x), x)


class _Encoder(_Part):
    @linen.compact
    def __call__(self, x, mask):
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, self.dtype, name=f"layer_{i}")(x, mask)
        return x


class _Pooler(_Part):
    @linen.compact
    def __call__(self, x):
        return jnp.tanh(self.dense("dense", x.shape[-1], x[:, 0]))


class _TextModel(_Part):
    @linen.compact
    def __call__(self, tokens):
        def make(kind, name):
            return kind(self.config, self.dtype, name=name)

        mask = tokens != self.config.pad_token_id
        x = make(_Embeddings, "embeddings")(tokens)
        x = make(_Encoder, "encoder")(x, mask)
        return make(_Pooler, "pooler")(x)


class _Projection(_Part):
    @linen.compact
    def __call__(self, x):
        features = self.config.projection_dim
        x = jax.nn.relu(self.dense("linear1", features, x))
        return self.dense("linear2", features, x)


class CLAPTextModel(linen.Module):
    """Prompts as points of the space that CLAP has for texts and sounds.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: CLAPTextConfig
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch features"]:
        """Embeddings of length 1, which how far a prompt is filled up does not change.

        Args:
            tokens: prompts, filled up with the config's `pad_token_id`.
        """
        pooled = _TextModel(self.config, self.dtype, name="text_model")(tokens)
        x = _Projection(self.config, self.dtype, name="text_projection")(pooled)
        x = x.astype(jnp.float32)
        norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return x / jnp.maximum(norm, _LEAST_NORM)


def current_name(name: str) -> str | None:
    """The name that a weight of any release has here.

    None for what is no weight: files hold the positions 0, 1, 2, ... and the tokens'
    kinds.
    """
    return None if name.endswith(_ENTRIES_WITHOUT_WEIGHTS) else name
