"""A case as the programs run it: by JAX, where `placement` says."""

import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.generators import cases
from benchmarks.generators.cases import Case
from gptfl_jax.generators import placement
from gptfl_jax.generators.diffusion import unet, vae
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.generators.placement import EVERYWHERE, SPLIT
from gptfl_jax.generators.sounds import clap_text
from gptfl_jax.generators.speech import hifigan, speecht5
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from gptfl_jax.generators.text import decoding, t5
from gptfl_jax.generators.text.text_to_text import T5
from gptfl_jax.released import hub, torch_weights


def side(
    case: Case, batch: int, folder: pathlib.Path, dtype: str
) -> Callable[[], np.ndarray]:
    """What gives the outputs of a case, channels last."""
    jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    given = cases.inputs(case, batch)
    match case.model:
        case "sd":
            run = _pictures(str(folder), given, [""] * batch, 20, 7.5, dtype)
        case "" if case.name == "glyphs":
            prompts = cases.glyph_prompts(batch)
            run = _pictures("glyphs", given, prompts, cases.STEPS, 2.0, dtype)
        case "":
            run = _voices(batch, dtype)
        case "t5":
            run = _answers(folder, given, dtype)
        case "speecht5":
            run = _spectrograms(folder, given, batch, dtype)
        case "hifigan" | "vocoder":
            run = _waves(folder, given, dtype)
        case _:
            run = _network(case, folder, given, dtype)
    return lambda: np.asarray(run(), np.float32)


def peak_bytes() -> int | None:
    """The most that the arrays and programs of a GPU took; None on a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _network(case, folder, given, dtype):
    network, current_name = _read(case.model, folder, dtype)
    examples = [jnp.zeros(_EXAMPLES[case.model], network_input(case.model))]
    if case.model == "unet":
        examples += [jnp.zeros(1), jnp.zeros((1, 1, 1024))]
    if case.model == "sound_unet":
        examples += [jnp.zeros(1), None, jnp.zeros((1, 512))]
    shapes = jax.eval_shape(network.init, jax.random.key(0), *examples)["params"]
    params = _weights(folder, shapes, current_name, dtype)

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
        name: jnp.asarray(value, jnp.int32 if value.dtype.kind == "i" else dtype)
        for name, value in given.items()
    }
    if case.model == "unet":
        # As the sampler, which has these from before its first step.
        given["projected"] = unet.project_context(params, given["context"], dtype)
    if case.model in ("vae", "sound_vae"):
        # As the sampler, by parts.
        [(name, values)] = given.items()
        config = network.config
        scale = 1 if name == "images" else config.factor
        most = config.pictures_at_once(values.shape[1] * scale, values.shape[2] * scale)
        return lambda: placement.in_parts(
            lambda rows: program(params, {name: rows}), values, most
        )
    return lambda: program(params, given)


def _pictures(source, given, prompts, steps, guidance, dtype):
    pipeline = StableDiffusion.from_pretrained(source, dtype=dtype)
    options = dict(num_steps=steps, guidance_scale=guidance)
    return lambda: pipeline(prompts, latents=given["latents"], **options)


def _answers(folder, given, dtype):
    config = t5.T5Config.from_json(hub.read_json(folder / "config.json"))
    weights = hub.open_weights(hub.find_weights(folder / "model"))
    config, weights = t5.current_weights(config, weights)
    network = t5.T5Network(config, dtype)
    shapes, place = t5.network_shapes(network), torch_weights.on_device
    params = torch_weights.from_torch(shapes, weights, "t5", dtype=dtype, place=place)
    model = T5(network, params, None)
    how = decoding.Decoding("greedy", max_length=16)
    tokens = given["tokens"]
    mask = np.ones(tokens.shape, bool)
    return lambda: model.generate_tokens(tokens, mask, how)[:, 0]


def _waves(folder, given, dtype):
    config = hifigan.HifiGanConfig.from_json(hub.read_json(folder / "config.json"))
    network = hifigan.HifiGan(config, dtype)
    weights = hub.read_weights(hub.find_weights(folder / "model"))
    variables = hifigan.from_torch(network, weights, "hifigan", dtype)
    variables = jax.device_put(variables)
    vocode = placement.compiled(network.apply, placement.mesh(), (EVERYWHERE, SPLIT))
    return lambda: vocode(variables, jnp.asarray(given["mels"], dtype))


def _voices(batch, dtype):
    pipeline = TextToSpeech.from_pretrained("voices", dtype=dtype)
    vectors = cases.voice_vectors(batch)
    keep = cases.keep(pipeline.model.config)[None]

    def speak():
        words = list(cases.WORDS[:batch])
        waves, lengths = pipeline(words, vectors, keep=keep)
        longest = int(np.argmax(lengths))
        return np.asarray(waves)[longest, : lengths[longest]]

    return speak


def _spectrograms(folder, given, batch, dtype):
    config = speecht5.SpeechT5Config.from_json(hub.read_json(folder / "config.json"))
    network = speecht5.SpeechT5ForTextToSpeech(config, dtype)
    variables = torch_weights.variables_from_torch(
        speecht5.shapes(network),
        hub.open_weights(hub.find_weights(folder / "model")),
        "speecht5",
        speecht5.current_name,
        dtype=dtype,
        place=torch_weights.on_device,
    )
    silent = hifigan.HifiGan(hifigan.HifiGanConfig())
    rows = given["tokens"].tolist()
    tokens = lambda texts: type("Tokens", (), {"input_ids": rows})  # noqa: E731
    pipeline = TextToSpeech(
        network, silent, {"model": variables, "vocoder": {}}, tokens
    )
    keep = cases.keep(network.config)[None]

    def spectrograms():
        mels, _ = pipeline.spectrograms(
            [""] * batch,
            given["speakers"],
            keep=keep,
            threshold=cases.OUT_OF_REACH,
            max_frames_per_token=20,
        )
        return mels[:, :200]

    return spectrograms


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


def _read(model, folder, dtype):
    clip = clip_text.CLIPTextConfig, clip_text.CLIPTextModel, clip_text.current_name
    clap = clap_text.CLAPTextConfig, clap_text.CLAPTextModel, clap_text.current_name
    config, network, current_name = {
        "clip": clip,
        "clap": clap,
        "unet": (unet.UNetConfig, unet.UNet2DCondition, str),
        "vae": (vae.VAEConfig, vae.AutoencoderKL, vae.current_name),
    }[model.removeprefix("sound_")]
    options = hub.read_json(folder / "config.json")
    return network(config.from_json(options), dtype=dtype), current_name


def _weights(folder, shapes, current_name, dtype):
    stems = [folder / "model", folder / "diffusion_pytorch_model"]
    file = next(filter(None, map(hub.find_weights, stems)))
    return torch_weights.from_torch(
        shapes,
        hub.open_weights(file),
        str(file),
        current_name,
        dtype=dtype,
        place=torch_weights.on_device,
    )
