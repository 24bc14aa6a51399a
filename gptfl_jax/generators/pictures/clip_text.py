"""The text encoder of CLIP (`CLIPTextModel`), as Stable Diffusion uses it.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision"
(arXiv 2103.00020).
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

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@dataclasses.dataclass(frozen=True)
class CLIPTextConfig(ModelConfig):
    """Options of `CLIPTextModel`; the defaults are those of the PyTorch class.

    Attributes:
        vocab_size: number of tokens.
        hidden_size: features of a token.
        intermediate_size: features inside the feed-forward layers.
        num_hidden_layers: depth.
        num_attention_heads: heads of each attention.
        max_position_embeddings: longest prompt, in tokens.
        hidden_act: "gelu" (exact) or "quick_gelu" (x sigmoid(1.702 x)).
        layer_norm_eps: epsilon of the norms.
        projection_dim: of CLIP's joint space; no effect here.
        bos_token_id: no effect here, as the next two: prompts come as tokens.
        eos_token_id: see above.
        pad_token_id: see above.
    """

    torch_class: ClassVar[str] = "CLIPTextModel"
    # Files of `transformers` hold dozens of unrelated options.
    without_effect: ClassVar = None

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    projection_dim: int | None = 512
    bos_token_id: int | None = 49406
    eos_token_id: int | None = 49407
    pad_token_id: int | None = 1

    def __post_init__(self):
        if self.hidden_act not in _ACTIVATIONS:
            raise UserError(
                f"hidden_act = {self.hidden_act!r}: CLIPTextConfig takes "
                + " or ".join(map(repr, _ACTIVATIONS))
            )

    def to_json(self):
        names = {"model_type": "clip_text_model", "architectures": [self.torch_class]}
        return names | super().to_json()


class _Embeddings(linen.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @linen.compact
    def __call__(self, tokens):
        def embed(name, count, scale, ids):
            module = linen.Embed(
                count,
                self.config.hidden_size,
                dtype=self.dtype,
                embedding_init=linen.initializers.normal(scale),
                name=name,
            )
            return module(ids)

        positions = jnp.arange(tokens.shape[-1])
        return embed("token_embedding", self.config.vocab_size, 0.02, tokens) + embed(
            "position_embedding", self.config.max_position_embeddings, 0.01, positions
        )


class _SelfAttention(linen.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        def project(name, x):
            return nn.Dense(x.shape[-1], dtype=self.dtype, name=name)(x)

        def heads(x):
            return x.reshape(*x.shape[:2], self.config.num_attention_heads, -1)

        query, key, value = (heads(project(f"{n}_proj", x)) for n in "qkv")
        outputs = attention(query, key, value, causal=True)
        return project("out_proj", outputs.reshape(x.shape))


class _FeedForward(linen.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @linen.compact
    def __call__(self, inputs):
        fc1 = nn.Dense(self.config.intermediate_size, dtype=self.dtype, name="fc1")
        fc2 = nn.Dense(inputs.shape[-1], dtype=self.dtype, name="fc2")
        return fc2(_ACTIVATIONS[self.config.hidden_act](fc1(inputs)))


class _Layer(linen.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        def norm(name, x):
            epsilon = self.config.layer_norm_eps
            return nn.LayerNorm(epsilon, dtype=self.dtype, name=name)(x)

        attend = _SelfAttention(self.config, self.dtype, name="self_attn")
        feed_forward = _FeedForward(self.config, self.dtype, name="mlp")
        x += attend(norm("layer_norm1", x))
        return x + feed_forward(norm("layer_norm2", x))


class _Encoder(linen.Module):
    config: CLIPTextConfig
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, self.dtype, name=f"layers_{i}")(x)
        return x


class CLIPTextModel(linen.Module):
    """Features of each token, each seeing only the tokens before it.

    Padding is not masked: Stable Diffusion was trained with it visible.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32

    @linen.compact
    def __call__(
        self, tokens: Int[Array, "batch length"]
    ) -> Float[Array, "batch length features"]:
        """The last hidden state, after the final layer norm."""
        x = _Embeddings(self.config, self.dtype, name="embeddings")(tokens)
        x = _Encoder(self.config, self.dtype, name="encoder")(x)
        return nn.LayerNorm(
            self.config.layer_norm_eps, dtype=self.dtype, name="final_layer_norm"
        )(x)


def current_name(name: str) -> str | None:
    """The name that a weight of any release has in today's `transformers`.

    None for what is no weight: older files hold the positions 0, 1, 2, ...
    """
    if name.endswith("embeddings.position_ids"):
        return None
    return name.removeprefix("text_model.")
