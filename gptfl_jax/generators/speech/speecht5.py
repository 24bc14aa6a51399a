"""The text-to-speech model of SpeechT5 (`SpeechT5ForTextToSpeech`), for inference.

Ao et al., "SpeechT5: Unified-Modal Encoder-Decoder Pre-Training for Spoken Language
Processing" (arXiv 2110.07205).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from gptfl_jax import nn
from gptfl_jax.errors import UserError
from gptfl_jax.released import torch_weights
from gptfl_jax.released.model_config import ModelConfig

_BATCH_NORM_EPSILON = 1e-5

# Numbers in the table of positions, which no file of weights holds; the released model
# has 3 million.
_LARGEST_TABLE = 2**26


@dataclasses.dataclass(frozen=True)
class SpeechT5Config(ModelConfig):
    """Options of `SpeechT5ForTextToSpeech`; the defaults are the PyTorch class's.

    Attributes:
        vocab_size: number of tokens (characters).
        hidden_size: features of a token and of a decoder step.
        encoder_layers: depth of the text encoder.
        encoder_attention_heads: heads of each of its attentions.
        encoder_ffn_dim: features inside its feed-forward layers.
        encoder_max_relative_position: farther tokens share the bias of this distance.
        decoder_layers: depth of the speech decoder.
        decoder_attention_heads: heads of each of its attentions.
        decoder_ffn_dim: features inside its feed-forward layers.
        layer_norm_eps: epsilon of the layer norms.
        pad_token_id: what texts are filled up with.
        num_mel_bins: mel bands.
        speech_decoder_prenet_layers: layers between a frame and the decoder.
        speech_decoder_prenet_units: their features.
        speech_decoder_prenet_dropout: share of these that is KEPT, also when speech is
            made, and scaled by 1 / (1 - share); sane at 0.5 alone.
        speaker_embedding_dim: features of a speaker vector.
        speech_decoder_postnet_layers: convolutions that refine the spectrogram.
        speech_decoder_postnet_units: their channels.
        speech_decoder_postnet_kernel: their window, in frames.
        reduction_factor: frames made in one step.
        max_speech_positions: most steps.
        max_text_positions: longest text, in tokens.
    """

    torch_class: ClassVar[str] = "SpeechT5ForTextToSpeech"
    fixed: ClassVar = {
        "model_type": ("speecht5",),
        "architectures": (None, ("SpeechT5ForTextToSpeech",)),
        "hidden_act": ("gelu",),
    }
    # Files of `transformers` hold dozens of unrelated options.
    without_effect: ClassVar = None

    vocab_size: int = 81
    hidden_size: int = 768
    encoder_layers: int = 12
    encoder_attention_heads: int = 12
    encoder_ffn_dim: int = 3072
    encoder_max_relative_position: int = 160
    decoder_layers: int = 6
    decoder_attention_heads: int = 12
    decoder_ffn_dim: int = 3072
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    num_mel_bins: int = 80
    speech_decoder_prenet_layers: int = 2
    speech_decoder_prenet_units: int = 256
    speech_decoder_prenet_dropout: float = 0.5
    speaker_embedding_dim: int = 512
    speech_decoder_postnet_layers: int = 5
    speech_decoder_postnet_units: int = 256
    speech_decoder_postnet_kernel: int = 5
    reduction_factor: int = 2
    max_speech_positions: int = 4000
    max_text_positions: int = 450

    def __post_init__(self):
        longest = max(self.max_speech_positions, self.max_text_positions)
        if longest * self.hidden_size > _LARGEST_TABLE:
            raise UserError(
                f"max_speech_positions and max_text_positions = {longest}: times "
                f"hidden_size, SpeechT5Config takes {_LARGEST_TABLE:,} at most"
            )

    def to_json(self):
        names = {"model_type": "speecht5", "architectures": [self.torch_class]}
        return names | super().to_json()


class KeyValues(NamedTuple):
    """What one attention looks at."""

    keys: Float[Array, "batch heads length features"]
    values: Float[Array, "batch heads length features"]


class DecoderState(NamedTuple):
    """What the decoder remembers of the steps before, a `KeyValues` for each layer."""

    layers: tuple[KeyValues, ...]


class Step(NamedTuple):
    """What the decoder makes in one step or several, `reduction_factor` frames each."""

    frames: Float[Array, "batch frames mels"]
    """Of the spectrogram, before it is refined."""
    stop: Float[Array, "batch frames"]
    """Probabilities that the speech ends with the step of each frame."""


def _dense(features, dtype, name):
    return nn.Dense(features, dtype=dtype, name=name)


def _positions(length, features):
    """Sines and cosines of the positions, interleaved [length, features]."""
    steps = np.arange(length)[:, None]
    rates = np.exp(np.arange(0, features, 2) * (-np.log(10_000.0) / features))
    table = np.stack([np.sin(steps * rates), np.cos(steps * rates)], -1)
    return table.reshape(length, -1)[:, :features].astype(np.float32)


class _ScaledPositions(linen.Module):
    """Adds a learned multiple of the positions (Li et al., arXiv 1809.08895, 3.2)."""

    longest: int

    @linen.compact
    def __call__(self, x, start=0):
        alpha = self.param("alpha", linen.initializers.ones, ())
        table = jnp.asarray(_positions(self.longest, x.shape[-1]), x.dtype)
        rows = jax.lax.dynamic_slice_in_dim(table, start, x.shape[1])
        return x + alpha.astype(x.dtype) * rows


class _Attention(linen.Module):
    """Multi-head attention; keys and values are made apart, so that they can be kept.

    Logits and softmax are float32 whatever the inputs are. Written out, as no fused
    kernel fits: the encoder's distances are compared with the queries, which no bias
    given from outside can be, and a step of the decoder has one query a sentence.
    """

    heads: int
    features: int
    dtype: DTypeLike

    def setup(self):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self, name, nn.Dense(self.features, dtype=self.dtype))

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(0, 2, 1, 3)

    def key_values(self, x):
        return KeyValues(self._split(self.k_proj(x)), self._split(self.v_proj(x)))

    def __call__(self, x, seen, mask, distances=None):
        """Of `x` to `seen`; `mask` [batch or 1, queries or 1, keys] is what counts.

        `distances` [queries, keys, features] are compared with the queries as well
        (Shaw et al., arXiv 1803.02155).
        """
        query = self._split(self.q_proj(x) * (self.features // self.heads) ** -0.5)
        wide = {"preferred_element_type": jnp.float32}
        logits = jnp.einsum("bhqd,bhkd->bhqk", query, seen.keys, **wide)
        if distances is not None:
            logits += jnp.einsum("bhqd,qkd->bhqk", query, distances, **wide)
        logits = jnp.where(mask[:, None], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(seen.values.dtype)
        outputs = jnp.einsum("bhqk,bhkd->bhqd", weights, seen.values)
        return self.out_proj(outputs.transpose(0, 2, 1, 3).reshape(x.shape))


class _FeedForward(linen.Module):
    inner: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        inner = _dense(self.inner, self.dtype, "intermediate_dense")
        outer = _dense(x.shape[-1], self.dtype, "output_dense")
        return outer(jax.nn.gelu(inner(x), approximate=False))


class _EncoderLayer(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x, mask, distances):
        config = self.config

        def norm(name, x):
            return nn.LayerNorm(config.layer_norm_eps, dtype=self.dtype, name=name)(x)

        attend = _Attention(
            config.encoder_attention_heads, x.shape[-1], self.dtype, name="attention"
        )
        feed_forward = _FeedForward(
            config.encoder_ffn_dim, self.dtype, name="feed_forward"
        )
        x = norm("layer_norm", x + attend(x, attend.key_values(x), mask, distances))
        return norm("final_layer_norm", x + feed_forward(x))


class _RelativePositions(linen.Module):
    """A vector for each distance of two tokens, the same from `longest` on."""

    longest: int
    features: int
    dtype: DTypeLike

    @linen.compact
    def __call__(self, length):
        embed = linen.Embed(
            2 * self.longest, self.features, dtype=self.dtype, name="pe_k"
        )
        position = np.arange(length)
        distance = position[:, None] - position
        return embed(np.clip(distance, -self.longest, self.longest - 1) + self.longest)


class _Encoder(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x, mask):
        config = self.config
        x = nn.LayerNorm(config.layer_norm_eps, dtype=self.dtype, name="layer_norm")(x)
        distances = _RelativePositions(
            config.encoder_max_relative_position,
            config.hidden_size // config.encoder_attention_heads,
            self.dtype,
            name="embed_positions",
        )(x.shape[1])
        for i in range(config.encoder_layers):
            layer = _EncoderLayer(config, self.dtype, name=f"layers_{i}")
            x = layer(x, mask[:, None], distances)
        return x


class _EncoderPrenet(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, tokens):
        config = self.config
        embed = linen.Embed(
            config.vocab_size,
            config.hidden_size,
            dtype=self.dtype,
            embedding_init=linen.initializers.normal(0.02),
            name="embed_tokens",
        )
        positions = _ScaledPositions(config.max_text_positions, name="encode_positions")
        return positions(embed(tokens))


class _TextEncoder(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, tokens, mask):
        x = _EncoderPrenet(self.config, self.dtype, name="prenet")(tokens)
        return _Encoder(self.config, self.dtype, name="wrapped_encoder")(x, mask)


class _DecoderLayer(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    def setup(self):
        config = self.config
        heads, features = config.decoder_attention_heads, config.hidden_size

        def norm():
            return nn.LayerNorm(config.layer_norm_eps, dtype=self.dtype)

        self.self_attn = _Attention(heads, features, self.dtype)
        self.self_attn_layer_norm = norm()
        self.encoder_attn = _Attention(heads, features, self.dtype)
        self.encoder_attn_layer_norm = norm()
        self.feed_forward = _FeedForward(config.decoder_ffn_dim, self.dtype)
        self.final_layer_norm = norm()

    def text(self, encoded):
        return self.encoder_attn.key_values(encoded)

    def __call__(self, x, earlier, text, mask, step):
        new = self.self_attn.key_values(x)
        earlier = jax.tree.map(
            lambda kept, row: jax.lax.dynamic_update_slice_in_dim(kept, row, step, 2),
            earlier,
            new,
        )
        now = step + jnp.arange(x.shape[1])
        causal = (jnp.arange(earlier.keys.shape[2]) <= now[:, None])[None]
        x = self.self_attn_layer_norm(x + self.self_attn(x, earlier, causal))
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, text, mask[:, None]))
        return self.final_layer_norm(x + self.feed_forward(x)), earlier


class _Decoder(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    def setup(self):
        self.layers = [
            _DecoderLayer(self.config, self.dtype)
            for _ in range(self.config.decoder_layers)
        ]

    def text(self, encoded):
        return tuple(layer.text(encoded) for layer in self.layers)

    def __call__(self, x, state, text, mask, step):
        kept = []
        for layer, earlier, seen in zip(self.layers, state.layers, text, strict=True):
            x, earlier = layer(x, earlier, seen, mask, step)
            kept.append(earlier)
        return x, DecoderState(tuple(kept))


class _DecoderPrenet(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    @linen.compact
    def __call__(self, frames, speakers, keep, step):
        config = self.config
        x = frames.astype(self.dtype)
        for i in range(config.speech_decoder_prenet_layers):
            layer = _dense(
                config.speech_decoder_prenet_units, self.dtype, f"layers_{i}"
            )
            scale = 1 / (1 - config.speech_decoder_prenet_dropout)
            x = jnp.where(keep[:, :, i], jax.nn.relu(layer(x)) * scale, 0)
        x = _dense(config.hidden_size, self.dtype, "final_layer")(x)
        positions = _ScaledPositions(
            config.max_speech_positions, name="encode_positions"
        )
        x = positions(x, step)
        length = jnp.linalg.norm(speakers, axis=-1, keepdims=True)
        speakers = (speakers / jnp.maximum(length, 1e-12)).astype(x.dtype)
        speakers = jnp.broadcast_to(
            speakers[:, None], (*x.shape[:2], speakers.shape[-1])
        )
        x = jnp.concatenate([x, speakers], -1)
        return jax.nn.relu(
            _dense(config.hidden_size, self.dtype, "speaker_embeds_layer")(x)
        )


class _SpeechDecoder(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    def setup(self):
        self.prenet = _DecoderPrenet(self.config, self.dtype)
        self.wrapped_decoder = _Decoder(self.config, self.dtype)

    def __call__(self, frames, speakers, keep, state, text, mask, step):
        x = self.prenet(frames, speakers, keep, step)
        return self.wrapped_decoder(x, state, text, mask, step)


class _SpeechT5(linen.Module):
    """Only names what is inside as the released weights are named."""

    config: SpeechT5Config
    dtype: DTypeLike

    def setup(self):
        self.encoder = _TextEncoder(self.config, self.dtype)
        self.decoder = _SpeechDecoder(self.config, self.dtype)


class _PostnetLayer(linen.Module):
    config: SpeechT5Config
    features: int
    last: bool
    dtype: DTypeLike

    @linen.compact
    def __call__(self, x):
        window = self.config.speech_decoder_postnet_kernel
        x = nn.Conv(
            self.features,
            window,
            padding=(window - 1) // 2,
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )(x)
        norm = nn.BatchNorm(_BATCH_NORM_EPSILON, dtype=self.dtype, name="batch_norm")
        x = norm(x, train=False)
        return x if self.last else jnp.tanh(x)


class _Postnet(linen.Module):
    config: SpeechT5Config
    dtype: DTypeLike

    def setup(self):
        config = self.config
        count = config.speech_decoder_postnet_layers
        # Mel bands and stops decide what is said: in float32.
        self.feat_out = nn.Dense(
            config.num_mel_bins * config.reduction_factor, dtype=jnp.float32
        )
        self.prob_out = nn.Dense(config.reduction_factor, dtype=jnp.float32)
        self.layers = [
            _PostnetLayer(
                config,
                config.speech_decoder_postnet_units
                if i < count - 1
                else config.num_mel_bins,
                i == count - 1,
                self.dtype,
            )
            for i in range(count)
        ]

    def steps(self, x):
        frames = self.feat_out(x).reshape(len(x), -1, self.config.num_mel_bins)
        stop = self.prob_out(x).reshape(len(x), -1)
        return Step(frames, jax.nn.sigmoid(stop))

    def refine(self, mels, lengths):
        inside = (jnp.arange(mels.shape[1]) < lengths[:, None])[:, :, None]
        x = jnp.where(inside, mels, 0)
        for layer in self.layers:
            x = jnp.where(inside, layer(x), 0)
        return jnp.where(inside, mels + x.astype(mels.dtype), 0)


class SpeechT5ForTextToSpeech(linen.Module):
    """Log-mel spectrograms of texts in the voices of speakers.

    `encode` and `text` look at the texts once, then `step` makes
    `config.reduction_factor` frames at a time, and `refine` improves the whole.
    Variables: `params`, and the running statistics of the postnet in `batch_stats`.

    Attributes:
        config: the options.
        dtype: of the computation; parameters keep theirs.
    """

    config: SpeechT5Config
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.speecht5 = _SpeechT5(self.config, self.dtype)
        self.speech_decoder_postnet = _Postnet(self.config, self.dtype)

    def encode(
        self, tokens: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch length features"]:
        """Features of each token; only tokens where `mask` is true are seen."""
        return self.speecht5.encoder(tokens, mask)

    def text(
        self, encoded: Float[Array, "batch length features"]
    ) -> tuple[KeyValues, ...]:
        """What each layer of the decoder sees of the encoded texts."""
        return self.speecht5.decoder.wrapped_decoder.text(encoded)

    def start(self, batch: int, steps: int) -> DecoderState:
        """The state before the first of at most `steps` steps."""
        config = self.config
        heads = config.decoder_attention_heads
        shape = (batch, heads, steps, config.hidden_size // heads)
        empty = KeyValues(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))
        return DecoderState((empty,) * config.decoder_layers)

    def step(
        self,
        frame: Float[Array, "batch mels"],
        speakers: Float[Array, "batch speaker_features"],
        keep: Bool[Array, "batch prenet_layers prenet_units"],
        state: DecoderState,
        text: tuple[KeyValues, ...],
        mask: Bool[Array, "batch length"],
        step: Int[Array, ""],
    ) -> tuple[Step, DecoderState]:
        """The next frames, after one: `steps` with a single step."""
        return self.steps(
            frame[:, None], speakers, keep[:, None], state, text, mask, step
        )

    def steps(
        self,
        frames: Float[Array, "batch steps mels"],
        speakers: Float[Array, "batch speaker_features"],
        keep: Bool[Array, "batch steps prenet_layers prenet_units"],
        state: DecoderState,
        text: tuple[KeyValues, ...],
        mask: Bool[Array, "batch length"],
        step: Int[Array, ""],
    ) -> tuple[Step, DecoderState]:
        """The frames of several steps at once, where those before each are known.

        Args:
            frames: the last frame before each step, unrefined; zeros before the first.
            speakers: a vector for each speaker's voice, of any length but 0.
            keep: which units of the prenet are kept: its dropout is always on
                (Shen et al., arXiv 1712.05884, 2.2).
            state: of the step before.
            text: of `text`.
            mask: of the tokens, as in `encode`.
            step: number of the first of these steps, from 0.
        """
        x, state = self.speecht5.decoder(
            frames, speakers, keep, state, text, mask, step
        )
        return self.speech_decoder_postnet.steps(x), state

    def refine(
        self, mels: Float[Array, "batch frames mels"], lengths: Int[Array, " batch"]
    ) -> Float[Array, "batch frames mels"]:
        """Spectrograms refined as each alone, 0 from its length on."""
        return self.speech_decoder_postnet.refine(mels, lengths)

    def __call__(
        self,
        tokens: Int[Array, "batch length"],
        speakers: Float[Array, "batch speaker_features"],
    ) -> Float[Array, "batch reduction mels"]:
        """The refined frames of one step without dropout; touches every parameter."""
        config = self.config
        mask = tokens != config.pad_token_id
        text = self.text(self.encode(tokens, mask))
        batch = len(tokens)
        layers = config.speech_decoder_prenet_layers
        keep = jnp.ones((batch, layers, config.speech_decoder_prenet_units), bool)
        frame = jnp.zeros((batch, config.num_mel_bins))
        made, _ = self.step(
            frame, speakers, keep, self.start(batch, 1), text, mask, jnp.int32(0)
        )
        lengths = jnp.full(batch, config.reduction_factor)
        return self.refine(made.frames, lengths)


def shapes(network: SpeechT5ForTextToSpeech) -> dict[str, Any]:
    """The variables of `network`, as `jax.ShapeDtypeStruct`s."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    speakers = jax.ShapeDtypeStruct(
        (1, network.config.speaker_embedding_dim), jnp.float32
    )
    return jax.eval_shape(network.init, jax.random.key(0), tokens, speakers)


def current_name(name: str) -> str | None:
    """The name of a weight; None for what is no weight.

    Older files hold the table of positions, and every file counts the batches that the
    running statistics are of.
    """
    if name.endswith((".encode_positions.pe", ".num_batches_tracked")):
        return None
    return name


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a release that hold `variables`."""
    weights = torch_weights.variables_to_torch(variables)
    for name in list(weights):
        if name.endswith(".running_mean"):
            counter = name.replace("running_mean", "num_batches_tracked")
            weights[counter] = np.zeros((), np.int64)
    return weights
