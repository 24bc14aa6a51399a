"""Words a second of text to speech, here and in PyTorch.

  python -m benchmarks.speech --output docs/performance.md

Needs the `parity` extra. SpeechT5 and HiFi-GAN in their released sizes, with the same
random weights on both sides. As random weights never end a word at the right moment,
the stop threshold is out of reach and every word runs to its longest, 20 frames a
token: 80 to 200 frames. PyTorch takes each batch at once as well, which its users
seldom do. Both take turns, so that other work on the machine meets both alike, and the
median counts. Compilation is given apart.
"""

import argparse
import json
import pathlib
import statistics
import time

import jax
import numpy as np
import torch
import transformers

from benchmarks import document
from gptfl_jax import labels
from gptfl_jax.generators import hifigan, speecht5, torch_weights
from gptfl_jax.generators.hifigan import HifiGan, HifiGanConfig
from gptfl_jax.generators.speecht5 import SpeechT5Config, SpeechT5ForTextToSpeech
from gptfl_jax.generators.text_to_speech import TextToSpeech

# Sigmoids of two frames never add up to it.
_OUT_OF_REACH = 3.0


class Characters:
    """Stands for the tokenizer: a token a letter, one before and one after."""

    def __call__(self, texts):
        rows = [[4, *(ord(c) - ord("a") + 5 for c in text), 2] for text in texts]
        return type("Tokens", (), {"input_ids": rows})


def main() -> None:
    """Measures each batch size, prints its line and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model = transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config()).eval()
    vocoder = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig()).eval()
    pipeline = ours(model, vocoder)
    reports = []
    for size in arguments.batch_sizes:
        reports.append(measure(model, vocoder, pipeline, size, arguments.repeats))
        print(json.dumps(reports[-1]), flush=True)
    if arguments.output:
        document.write("speech", describe(reports), arguments.output)


def ours(model, vocoder) -> TextToSpeech:
    """Our pipeline with the weights of PyTorch's networks."""
    network = SpeechT5ForTextToSpeech(SpeechT5Config())
    hifi_gan = HifiGan(HifiGanConfig())

    def weights(module):
        return {name: value.numpy() for name, value in module.state_dict().items()}

    variables = {
        "model": torch_weights.variables_from_torch(
            speecht5.shapes(network), weights(model), "model", speecht5.current_name
        ),
        "vocoder": hifigan.from_torch(hifi_gan, weights(vocoder), "vocoder"),
    }
    return TextToSpeech(network, hifi_gan, variables, Characters())


def measure(model, vocoder, pipeline, size: int, repeats: int) -> dict:
    """Seconds for `size` words; checks that both make equally long speech."""
    words = labels.label_set("speech_commands").classes[:size]
    speakers = np.random.default_rng(0).normal(size=(size, 512)).astype(np.float32)
    rows = Characters()(words).input_ids
    tokens = np.full((size, max(map(len, rows))), 1)
    for row, filled in zip(rows, tokens, strict=True):
        filled[: len(row)] = row
    longest = tokens.shape[1] * 20 * 256

    @torch.no_grad()
    def theirs():
        waves = model.generate_speech(
            torch.from_numpy(tokens),
            torch.from_numpy(speakers),
            threshold=_OUT_OF_REACH,
            vocoder=vocoder,
        )
        assert waves.shape[-1] == longest

    def here():
        key = jax.random.key(0)
        waves, lengths = pipeline(words, speakers, key=key, threshold=_OUT_OF_REACH)
        jax.block_until_ready(waves)
        assert lengths.max() == longest

    def seconds(function):
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    first = seconds(here)
    seconds(theirs)  # its first run is slower too
    pairs = [(seconds(here), seconds(theirs)) for _ in range(repeats)]
    jax_s, torch_s = map(statistics.median, zip(*pairs, strict=True))
    return {
        "words": size,
        "jax_s": round(jax_s, 3),
        "torch_s": round(torch_s, 3),
        "compilation_s": round(first - jax_s, 1),
        "jax_words_per_s": round(size / jax_s, 2),
        "torch_words_per_s": round(size / torch_s, 2),
    }


def describe(reports: list[dict]) -> str:
    """A table in Markdown, a line a batch size."""
    header = ["words at once", "ours", "PyTorch", "ratio", "compilation"]
    rows = [
        [
            str(r["words"]),
            f"{r['jax_words_per_s']:.2f} words/s",
            f"{r['torch_words_per_s']:.2f} words/s",
            f"{r['torch_s'] / r['jax_s']:.1f}",
            f"{r['compilation_s']:.0f} s",
        ]
        for r in reports
    ]
    versions = (
        f"PyTorch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32 on {jax.devices()[0].platform}"
    )
    where = f"{document.circumstances()} {versions}."
    return f"{where}\n\n{document.table(header, rows)}"


if __name__ == "__main__":
    main()
