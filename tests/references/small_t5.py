"""The smallest T5, with weights drawn at random, for quick tests."""

import jax
import numpy as np
import tokenizers
import transformers

from gptfl_jax.generators.text.t5 import T5Config, T5Network, network_shapes
from gptfl_jax.generators.text.text_to_text import T5

SPECIAL = ["<pad>", "</s>", "<unk>", "<extra_id_0>"]
WORDS = [
    *SPECIAL,
    *"a cat dog hot bird and the sees two red small runs near to".split(),
]


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a word."""
    model = tokenizers.models.WordLevel(
        {word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=32,
    )


def model(seed: int = 0, devices=None, **options) -> T5:
    """A T5 that says random words; `options` are of its config."""
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**{"vocab_size": len(WORDS)} | sizes | options)
    network = T5Network(config)
    random = np.random.RandomState(seed)

    def draw(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        return random.standard_normal(shape.shape).astype(np.float32)

    params = jax.tree.map(draw, network_shapes(network))
    return T5(network, params, tokenizer(), devices)
