"""Every generator against its PyTorch counterpart, on the same random weights.

  python -m benchmarks.generators --output docs/performance.md

Needs the `parity` extra. Networks in the sizes of Stable Diffusion 2.1, T5-base,
SpeechT5, HiFi-GAN and AudioLDM, and the shipped glyphs and voices as whole pipelines,
in float32. Either side runs a case in a process of its own with all cores, so that the
peak of its memory, loading included, is the case's own. Both load the same files, take
turns, so that other work on the machine meets both alike, and must agree; medians
count. A UNet step of ours is the sampler's, which made the prompt's keys and values
before its first step. The first call, which compiles, is given apart.

What was measured is kept in `--folder` and not measured again: a run that was
interrupted goes on, and `--only unet64 --batch 2` measures a part of the table.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import document
from gptfl_jax.released import hub

_SPEAKERS = 512  # Numbers of a speaker vector.
_FRAMES = 200  # Of a spectrogram, 3.2 s.
# Sigmoids of two frames never add up to it: every word runs to its longest.
_OUT_OF_REACH = 3.0
_WORDS = ("backward", "bed", "bird", "cat", "dog", "down", "eight", "five") * 2
_STEPS = 15


class Case(NamedTuple):
    """A row of the table for each batch size."""

    name: str
    text: str
    model: str
    """Of `_MODELS`; empty where a shipped one is used."""
    batches: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 1e-3
    """Largest difference of the outputs over the largest output."""


CASES = {
    case.name: case
    for case in (
        Case("clip", "CLIP's text encoder, 77 tokens", "clip"),
        Case("t5", "T5's encoder and 16 tokens of answer", "t5"),
        Case("unet32", "UNet step, 32x32 latents", "unet"),
        Case("unet64", "UNet step, 64x64 latents", "unet"),
        Case("encode256", "VAE encoder, 256 px", "vae"),
        Case("encode512", "VAE encoder, 512 px", "vae"),
        Case("decode256", "VAE decoder, 256 px", "vae"),
        Case("decode512", "VAE decoder, 512 px", "vae"),
        Case("speecht5", "SpeechT5, 100 steps", "speecht5", (1, 2, 4, 16)),
        Case("hifigan", "HiFi-GAN, 200 frames", "hifigan"),
        Case("clap", "AudioLDM's text tower, 32 tokens", "clap"),
        Case("sound_unet", "AudioLDM's UNet step, 5 s", "sound_unet"),
        Case("sound_decode", "AudioLDM's VAE decoder, 5 s", "sound_vae"),
        Case("vocoder", "AudioLDM's vocoder, 5 s", "vocoder", (1, 2)),
        # Pixels: whole numbers from 0 to 255.
        Case("glyphs", "glyphs, 15 steps", "", (1, 2, 4, 128), 2.5 / 255),
        Case("voices", "voices, whole words", "", (1, 2, 4, 16), 1e-2),
    )
}


def main() -> None:
    """Measures what is missing, prints a line a case and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, nargs="+", help="default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="what was measured, too")
    parser.add_argument(
        "--folder", type=pathlib.Path, default=pathlib.Path("runs/benchmarks")
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="page to put the table in; default: none"
    )
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(CASES[arguments.only[0]], arguments.batch[0], arguments)
        return
    file = arguments.folder / "generators.json"
    reports = json.loads(file.read_text()) if file.exists() else {}
    for case in (CASES[name] for name in arguments.only):
        for batch in arguments.batch or case.batches:
            key = f"{case.name}:{batch}"
            if key not in reports or arguments.again:
                reports[key] = measure(case, batch, arguments)
                file.write_text(json.dumps(reports, indent=1))
            print(key, json.dumps(reports[key]), flush=True)
    if arguments.output:
        document.write("generators", describe(reports), arguments.output)


def measure(case: Case, batch: int, arguments: argparse.Namespace) -> dict:
    """Both sides in turn.

    Raises:
        SystemExit: a side failed, or they do not agree.
    """
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if case.model and not (folder / case.model / "config.json").exists():
        subprocess.run(
            [sys.executable, "-c", _MAKE_MODEL, case.model, str(folder / case.model)],
            check=True,
        )
    sides: dict[str, subprocess.Popen] = {}

    def run(side: str) -> float:
        process = sides[side]
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{case.name}, batch {batch}: {side} failed")
        return float(line)

    first = {}
    for side in _SIDES:  # One loads and compiles after the other.
        command = [sys.executable, "-m", "benchmarks.generators", "--side", side]
        command += ["--only", case.name, "--batch", str(batch)]
        sides[side] = subprocess.Popen(
            [*command, "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        first[side] = run(side)
    turns = [{side: run(side) for side in sides} for _ in range(arguments.repeats)]
    report: dict[str, Any] = {}
    for side, process in sides.items():
        process.stdin.close()
        report[f"{side}_s"] = statistics.median(turn[side] for turn in turns)
        report[f"{side}_first_s"] = first[side]
        report[f"{side}_mb"] = float(process.stdout.read())
        process.wait()
    ours, theirs = (np.load(folder / f"output_{side}.npy") for side in _SIDES)
    difference = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-9)
    if ours.shape != theirs.shape or not difference < case.tolerance:
        raise SystemExit(f"{case.name}, batch {batch}: outputs differ by {difference}")
    return report | {"difference": float(difference)}


def run_side(case: Case, batch: int, arguments: argparse.Namespace) -> None:
    """Runs the case once for each line of the standard input, and says the seconds."""
    function = _SIDES[arguments.side](case, batch, arguments.folder / case.model)
    output = None
    for _ in sys.stdin:
        start = time.perf_counter()
        output = function()
        print(time.perf_counter() - start, flush=True)
    np.save(arguments.folder / f"output_{arguments.side}.npy", output)
    peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak_kb / 1024)


def describe(reports: dict[str, dict]) -> str:
    """A table in Markdown, a line a case and batch size."""
    header = ["", "batch", "ours", "PyTorch", "times as fast"]
    header += ["peak memory, ours", "PyTorch's", "ratio", "first call, ours"]
    rows = []
    for case in CASES.values():
        for batch in case.batches:
            report = reports.get(f"{case.name}:{batch}")
            if report is None:
                continue
            rows.append(
                [
                    case.text,
                    batch,
                    f"{report['ours_s']:.3g} s",
                    f"{report['torch_s']:.3g} s",
                    f"{report['torch_s'] / report['ours_s']:.2f}",
                    f"{report['ours_mb']:,.0f} MB",
                    f"{report['torch_mb']:,.0f} MB",
                    f"{report['ours_mb'] / report['torch_mb']:.2f}",
                    f"{report['ours_first_s']:.1f} s",
                ]
            )
    import diffusers
    import torch
    import transformers

    versions = ", ".join(
        f"{name} {module.__version__}"
        for name, module in (
            ("PyTorch", torch),
            ("diffusers", diffusers),
            ("transformers", transformers),
        )
    )
    where = f"{document.circumstances()} {versions}, float32 on CPUs."
    return f"{where}\n\n{document.table(header, rows)}"


# What both sides are given ----------------------------------------------------------


def inputs(case: Case, batch: int) -> dict[str, np.ndarray]:
    """Random numbers of the shapes that the case takes, channels last."""
    rng = np.random.default_rng(0)
    side = int("".join(filter(str.isdigit, case.name)) or 0)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    match case.name:
        case "clip":
            return {"tokens": rng.integers(0, 49408, (batch, 77))}
        case "t5":
            return {"tokens": rng.integers(2, 32000, (batch, 64))}
        case "unet32" | "unet64":
            latents = normal(batch, side, side, 4)
            return {"latents": latents, "context": normal(batch, 77, 1024)}
        case "encode256" | "encode512":
            return {"images": rng.uniform(-1, 1, (batch, side, side, 3))}
        case "decode256" | "decode512":
            return {"latents": normal(batch, side // 8, side // 8, 4)}
        case "speecht5":
            tokens = rng.integers(4, 80, (batch, 10))
            return {"tokens": tokens, "speakers": normal(batch, _SPEAKERS)}
        case "hifigan":
            return {"mels": normal(batch, _FRAMES, 80)}
        case "clap":  # three words and padding
            words = rng.integers(3, 50265, (batch, 5))
            return {"tokens": np.pad(words, ((0, 0), (0, 27)), constant_values=1)}
        case "sound_unet":
            return {"latents": normal(batch, 125, 16, 8), "classes": normal(batch, 512)}
        case "sound_decode":
            return {"latents": normal(batch, 125, 16, 8)}
        case "vocoder":
            return {"mels": normal(batch, 500, 64)}
        case "glyphs":
            return {"latents": normal(batch, 8, 8, 4)}
        case _:
            return {}


_MAKE_MODEL = """
import sys
from benchmarks import generators
generators.make_model(*sys.argv[1:])
"""


def make_model(name: str, folder: str) -> None:
    """Writes a PyTorch network with random weights, in a released size."""
    import torch

    torch.manual_seed(0)
    _MODELS[name]().save_pretrained(folder)


def _make_clip():
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
    )
    return transformers.CLIPTextModel(config)


def _make_t5():
    import transformers

    config = transformers.T5Config(
        d_model=768, d_ff=3072, num_layers=12, num_heads=12, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight.data *= 4  # As they are made, it repeats one token.
    return model


def _make_unet():
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=(5, 10, 20, 20),
        use_linear_projection=True,
    )


def _make_vae():
    import diffusers

    return diffusers.AutoencoderKL(
        sample_size=768,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )


def _make_speecht5():
    import transformers

    return transformers.SpeechT5ForTextToSpeech(transformers.SpeechT5Config())


def _make_hifigan():
    import transformers

    return transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig())


def _make_clap():
    import transformers

    return transformers.ClapTextModelWithProjection(transformers.ClapTextConfig())


def _make_sound_unet():
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=128,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
        block_out_channels=(128, 256, 384, 640),
        cross_attention_dim=(128, 256, 384, 640),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=512,
        class_embeddings_concat=True,
    )


def _make_sound_vae():
    import diffusers

    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=(128, 256, 512),
        layers_per_block=2,
        latent_channels=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def _make_vocoder():
    import transformers

    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=64,
        upsample_initial_channel=1024,
        upsample_rates=[5, 4, 2, 2, 2],
        upsample_kernel_sizes=[16, 16, 8, 4, 4],
        normalize_before=False,
    )
    return transformers.SpeechT5HifiGan(config)


_MODELS: dict[str, Callable[[], Any]] = {
    "clap": _make_clap,
    "sound_unet": _make_sound_unet,
    "sound_vae": _make_sound_vae,
    "vocoder": _make_vocoder,
    "clip": _make_clip,
    "t5": _make_t5,
    "unet": _make_unet,
    "vae": _make_vae,
    "speecht5": _make_speecht5,
    "hifigan": _make_hifigan,
}


# The sides --------------------------------------------------------------------------
# Each makes a function without arguments that gives the outputs of a case as an array,
# channels last.


def ours(case: Case, batch: int, folder: pathlib.Path) -> Callable[[], np.ndarray]:
    """As the programs run it: with a JAX device a core, and where `placement` says."""
    import jax

    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    import jax.numpy as jnp

    from gptfl_jax.generators import placement
    from gptfl_jax.generators.diffusion import unet
    from gptfl_jax.generators.placement import EVERYWHERE, SPLIT
    from gptfl_jax.released import torch_weights

    given = inputs(case, batch)
    if case.model in _EXAMPLES:
        network, current_name = _our_network(case.model, folder)
        examples = [jnp.zeros(_EXAMPLES[case.model], network_input(case.model))]
        if case.model == "unet":
            examples += [jnp.zeros(1), jnp.zeros((1, 1, 1024))]
        if case.model == "sound_unet":
            examples += [jnp.zeros(1), None, jnp.zeros((1, 512))]
        shapes = jax.eval_shape(network.init, jax.random.key(0), *examples)["params"]
        params = _our_weights(folder, shapes, current_name)

        def apply(params, given):
            if "tokens" in given:
                return network.apply({"params": params}, given["tokens"])
            if case.model == "sound_unet":
                time = jnp.full(1, 500.0)
                others = time, None, given["classes"]
                return network.apply({"params": params}, given["latents"], *others)
            if case.model == "unet":
                time = jnp.full(1, 500.0)
                variables = {"params": params, "context": given["projected"]}
                context = given["context"]
                return network.apply(variables, given["latents"], time, context)
            method = "encode" if "images" in given else "decode"
            (values,) = given.values()
            result = network.apply({"params": params}, values, method=method)
            return result[0] if method == "encode" else result

        program = placement.compiled(apply, placement.mesh(), (EVERYWHERE, SPLIT))
        given = {
            name: jnp.asarray(
                value, jnp.int32 if value.dtype.kind == "i" else "float32"
            )
            for name, value in given.items()
        }
        if case.model == "unet":
            # As the sampler, which has these from before its first step.
            given["projected"] = unet.project_context(params, given["context"])
        if case.model in ("vae", "sound_vae"):
            # As the sampler, by parts.
            [(name, values)] = given.items()
            config = network.config
            scale = 1 if name == "images" else config.factor
            most = config.pictures_at_once(
                values.shape[1] * scale, values.shape[2] * scale
            )

            def run(rows):
                return program(params, {name: rows})

            return lambda: np.asarray(placement.in_parts(run, values, most))
        return lambda: np.asarray(program(params, given))
    if case.name == "t5":
        from gptfl_jax.generators.text import decoding, t5
        from gptfl_jax.generators.text.text_to_text import T5

        config = t5.T5Config.from_json(hub.read_json(folder / "config.json"))
        weights = hub.open_weights(hub.find_weights(folder / "model"))
        config, weights = t5.current_weights(config, weights)
        network = t5.T5Network(config)
        params = torch_weights.from_torch(
            t5.network_shapes(network), weights, "t5", place=torch_weights.on_device
        )
        model = T5(network, params, None)
        how = decoding.Decoding("greedy", max_length=16)
        tokens = given["tokens"]
        mask = np.ones(tokens.shape, bool)
        return lambda: np.asarray(model.generate_tokens(tokens, mask, how))[:, 0]
    if case.name == "glyphs":
        from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion

        pipeline = StableDiffusion.from_pretrained("glyphs")
        return lambda: np.asarray(
            pipeline(
                _glyph_prompts(batch),
                latents=given["latents"],
                num_steps=_STEPS,
                guidance_scale=2.0,
            ),
            np.float32,
        )
    return _our_speech(case, batch, folder, given)


# Shapes of what networks of one kind of input read first.
_EXAMPLES = {
    "clip": (1, 1),
    "clap": (1, 1),
    "unet": (1, 8, 8, 4),
    "sound_unet": (1, 8, 8, 8),
    "vae": (1, 8, 8, 3),
    "sound_vae": (1, 8, 8, 1),
}


def network_input(model: str) -> type:
    """The type of what a network reads first."""
    return np.int32 if model in ("clip", "clap") else np.float32


def _our_network(model, folder):
    from gptfl_jax.generators.diffusion import unet, vae
    from gptfl_jax.generators.pictures import clip_text
    from gptfl_jax.generators.sounds import clap_text

    clip = clip_text.CLIPTextConfig, clip_text.CLIPTextModel, clip_text.current_name
    clap = clap_text.CLAPTextConfig, clap_text.CLAPTextModel, clap_text.current_name
    config, network, current_name = {
        "clip": clip,
        "clap": clap,
        "unet": (unet.UNetConfig, unet.UNet2DCondition, str),
        "vae": (vae.VAEConfig, vae.AutoencoderKL, vae.current_name),
    }[model.removeprefix("sound_")]
    options = hub.read_json(folder / "config.json")
    return network(config.from_json(options)), current_name


def _our_weights(folder, shapes, current_name):
    from gptfl_jax.released import torch_weights

    stems = [folder / "model", folder / "diffusion_pytorch_model"]
    file = next(filter(None, map(hub.find_weights, stems)))
    return torch_weights.from_torch(
        shapes,
        hub.open_weights(file),
        str(file),
        current_name,
        place=torch_weights.on_device,
    )


def _our_speech(case, batch, folder, given):
    import jax

    from gptfl_jax.generators import placement
    from gptfl_jax.generators.placement import EVERYWHERE, SPLIT
    from gptfl_jax.generators.speech import hifigan, speecht5
    from gptfl_jax.generators.speech.hifigan import HifiGan, HifiGanConfig
    from gptfl_jax.generators.speech.speecht5 import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
    )
    from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
    from gptfl_jax.released import torch_weights

    if case.model in ("hifigan", "vocoder"):
        network = HifiGan(
            HifiGanConfig.from_json(hub.read_json(folder / "config.json"))
        )
        weights = hub.read_weights(hub.find_weights(folder / "model"))
        variables = jax.device_put(hifigan.from_torch(network, weights, "hifigan"))
        vocode = placement.compiled(
            network.apply, placement.mesh(), (EVERYWHERE, SPLIT)
        )
        return lambda: np.asarray(vocode(variables, given["mels"]))
    if case.name == "voices":
        pipeline = TextToSpeech.from_pretrained("voices")
        vectors = _voice_vectors(batch)
        keep = _keep(pipeline.model.config)[None]

        def speak():
            words = list(_WORDS[:batch])
            waves, lengths = pipeline(words, vectors, keep=keep)
            longest = int(np.argmax(lengths))
            return np.asarray(waves)[longest, : lengths[longest]]

        return speak
    network = SpeechT5ForTextToSpeech(
        SpeechT5Config.from_json(hub.read_json(folder / "config.json"))
    )
    variables = torch_weights.variables_from_torch(
        speecht5.shapes(network),
        hub.open_weights(hub.find_weights(folder / "model")),
        "speecht5",
        speecht5.current_name,
        place=torch_weights.on_device,
    )
    silent = HifiGan(HifiGanConfig())
    rows = given["tokens"].tolist()
    tokens = lambda texts: type("Tokens", (), {"input_ids": rows})  # noqa: E731
    pipeline = TextToSpeech(
        network, silent, {"model": variables, "vocoder": {}}, tokens
    )
    keep = _keep(network.config)[None]

    def spectrograms():
        mels, _ = pipeline.spectrograms(
            [""] * batch,
            given["speakers"],
            keep=keep,
            threshold=_OUT_OF_REACH,
            max_frames_per_token=20,
        )
        return np.asarray(mels)[:, :200]

    return spectrograms


def torch_side(
    case: Case, batch: int, folder: pathlib.Path
) -> Callable[[], np.ndarray]:
    """As `diffusers` and `transformers` run it, with all cores."""
    import diffusers
    import torch
    import transformers

    torch.set_grad_enabled(False)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    given = {
        name: _channels(value, -1, 1) for name, value in inputs(case, batch).items()
    }
    given = {name: torch.from_numpy(value) for name, value in given.items()}
    if case.name == "glyphs":
        assets = str(hub.ASSETS / "glyphs")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            assets, torch_dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)
        return lambda: np.round(
            255
            * pipeline(
                _glyph_prompts(batch),
                latents=given["latents"],
                num_inference_steps=_STEPS,
                guidance_scale=2.0,
                output_type="np",
            ).images
        )
    if case.name == "voices":
        return _torch_voices(batch)
    kind = {
        "clip": transformers.CLIPTextModel,
        "t5": transformers.T5ForConditionalGeneration,
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "speecht5": transformers.SpeechT5ForTextToSpeech,
        "hifigan": transformers.SpeechT5HifiGan,
        "vocoder": transformers.SpeechT5HifiGan,
        "clap": transformers.ClapTextModelWithProjection,
    }[case.model.removeprefix("sound_")]
    model = kind.from_pretrained(folder).eval()

    def run():
        match case.model:
            case "clip":
                return model(given["tokens"]).last_hidden_state
            case "clap":
                mask = (given["tokens"] != 1).long()
                embedded = model(given["tokens"], attention_mask=mask).text_embeds
                return torch.nn.functional.normalize(embedded, dim=-1)
            case "sound_unet":
                classes = given["classes"]
                return model(given["latents"], 500, None, class_labels=classes).sample
            case "t5":
                options = {"min_new_tokens": 16, "max_new_tokens": 16}
                return model.generate(given["tokens"], do_sample=False, **options)[
                    :, 1:
                ]
            case "unet":
                return model(given["latents"], 500, given["context"]).sample
            case "vae" if "images" in given:
                return model.encode(given["images"]).latent_dist.mean
            case "vae" | "sound_vae":
                return model.decode(given["latents"]).sample
            case "speecht5":
                mels = model.generate_speech(
                    given["tokens"], given["speakers"], threshold=_OUT_OF_REACH
                )
                return mels.reshape(batch, -1, mels.shape[-1])
            case _:
                return model(given["mels"])

    if case.name == "speecht5":
        _fix_dropout(model)
    return lambda: _channels(run().numpy(), 1, -1)


def _channels(value: np.ndarray, source: int, target: int) -> np.ndarray:
    """Pictures with their channels moved."""
    if value.ndim != 4:
        return value if value.dtype.kind == "i" else value.astype(np.float32)
    return np.ascontiguousarray(np.moveaxis(value, source, target), np.float32)


def _torch_voices(batch):
    import torch
    import transformers

    folder = hub.ASSETS / "voices"
    model = transformers.SpeechT5ForTextToSpeech.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    vocoder = transformers.SpeechT5HifiGan.from_pretrained(
        folder / "vocoder", dtype=torch.float32
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = torch.from_numpy(_voice_vectors(batch))
    _fix_dropout(model)

    def speak():
        texts = tokenizer(list(_WORDS[:batch]), return_tensors="pt", padding=True)
        waves, lengths = model.generate_speech(
            texts.input_ids,
            vectors,
            attention_mask=texts.attention_mask,
            vocoder=vocoder,
            return_output_lengths=True,
        )
        waves = waves.reshape(batch, -1).numpy()
        longest = int(np.argmax(lengths))
        return waves[longest, : lengths[longest]]

    return speak


def _fix_dropout(model):
    """Gives the decoder's prenet, whose dropout is always on, the masks of our side."""
    import itertools

    import torch

    keep = torch.from_numpy(_keep(model.config))
    layers = itertools.cycle(range(keep.shape[1]))

    def dropout(x, p):
        return torch.where(keep[: x.shape[1], next(layers)], x, 0) / (1 - p)

    model.speecht5.decoder.prenet._consistent_dropout = dropout


def _keep(config):
    """Which units the prenet keeps: [steps, layers, units]."""
    shape = config.speech_decoder_prenet_layers, config.speech_decoder_prenet_units
    return np.random.default_rng(1).random((1000, *shape)) < 0.5


def _voice_vectors(batch):
    from gptfl_jax.generators.speech.speakers import read_speakers

    return read_speakers(hub.ASSETS / "voices" / "speakers").vectors[:batch]


def _glyph_prompts(batch):
    from train.glyphs import prompts

    return [prompts.prompt(i % 10, "handwritten") for i in range(batch)]


_SIDES = {"ours": ours, "torch": torch_side}


if __name__ == "__main__":
    main()
