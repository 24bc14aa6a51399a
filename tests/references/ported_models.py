"""Our side of the comparisons with PyTorch, live (tests/parity) or recorded.

Weights are not recorded: both sides fill them from a generator seeded by their name.
"""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from gptfl_jax.generators.diffusion import solvers, unet, vae
from gptfl_jax.generators.pictures import clip_text
from gptfl_jax.generators.pictures.sampling import Networks
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.generators.sounds import clap_text
from gptfl_jax.generators.sounds.audioldm import AudioLDM
from gptfl_jax.generators.sounds.networks import Networks as AudioLDMNetworks
from gptfl_jax.generators.speech import hifigan, speecht5
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech
from gptfl_jax.generators.text import t5
from gptfl_jax.generators.text.decoding import Decoding
from gptfl_jax.generators.text.text_to_text import T5
from gptfl_jax.released import torch_weights

FOLDER = pathlib.Path(__file__).parent


def load(name: str) -> dict:
    """A recorded reference: arrays by name, and parsed JSON for what is not one."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {
            key: json.loads(str(value)) if value.dtype.kind == "U" else value
            for key, value in file.items()
        }


def fill(name: str, shape) -> np.ndarray:
    """Weights of ordinary size, the same wherever a weight has this name and shape."""
    # RandomState: its streams never change between versions of numpy.
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    if len(shape) > 1:
        values /= np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.1 * values + name.endswith(("weight", "running_var", "scale"))
    return np.asarray(values, np.float32)


def weights(shapes: dict) -> dict[str, np.ndarray]:
    return {name: fill(name, tuple(shape)) for name, shape in shapes.items()}


def parameters(network, shapes, example, current_name=lambda name: name):
    """Parameters of one of our networks, from a checkpoint's weights."""
    template = jax.eval_shape(network.init, jax.random.key(0), *example)["params"]
    return torch_weights.from_torch(template, weights(shapes), "x", current_name)


def relative_error(ours, theirs) -> float:
    """Largest difference over the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def unet_output(reference):
    network = unet.UNet2DCondition(unet.UNetConfig.from_json(reference["config"]))
    inputs = [jnp.asarray(reference[n]) for n in ("latents", "timesteps")]
    inputs += [
        jnp.asarray(reference[n]) if n in reference else None
        for n in ("context", "classes")
    ]
    params = parameters(network, reference["weights"], inputs)
    with jax.default_matmul_precision("highest"):
        return jax.jit(network.apply)({"params": params}, *inputs)


def vae_outputs(reference):
    network = vae.AutoencoderKL(vae.VAEConfig.from_json(reference["config"]))
    images = jnp.asarray(reference["images"])
    params = {
        "params": parameters(network, reference["weights"], [images], vae.current_name)
    }
    with jax.default_matmul_precision("highest"):
        encode = jax.jit(lambda p, x: network.apply(p, x, method="encode"))
        decode = jax.jit(lambda p, x: network.apply(p, x, method="decode"))
        mean, log_variance = encode(params, images)
        return mean, log_variance, decode(params, jnp.asarray(reference["mean"]))


def clip_text_output(reference):
    config = clip_text.CLIPTextConfig.from_json(reference["config"])
    network = clip_text.CLIPTextModel(config)
    tokens = jnp.asarray(reference["tokens"])
    params = parameters(network, reference["weights"], [tokens], clip_text.current_name)
    with jax.default_matmul_precision("highest"):
        return jax.jit(network.apply)({"params": params}, tokens)


def clap_text_output(reference):
    config = clap_text.CLAPTextConfig.from_json(reference["config"])
    network = clap_text.CLAPTextModel(config)
    tokens = jnp.asarray(reference["tokens"])
    params = parameters(network, reference["weights"], [tokens], clap_text.current_name)
    with jax.default_matmul_precision("highest"):
        return jax.jit(network.apply)({"params": params}, tokens)


# On the outputs of a T5's layers: with weights of ordinary size it repeats one token.
T5_GAIN = 4.0
# Options of beam search, by the name a reference has of its answers.
T5_BEAMS = {
    "plain": {"num_beams": 3},
    "long": {"num_beams": 4, "length_penalty": 2.0},
    "short": {"num_beams": 3, "length_penalty": -0.5},
    "early": {"num_beams": 5, "early_stopping": True},
}


def t5_model(reference, devices=None) -> T5:
    """Our T5 of a recorded config, without a tokenizer."""
    given = {n: fill(n, tuple(s)) for n, s in reference["weights"].items()}
    for name in given:
        if name.endswith((".o.weight", ".wo.weight")):
            given[name] *= T5_GAIN
    config = t5.T5Config.from_json(reference["config"])
    config, given = t5.current_weights(config, given)
    network = t5.T5Network(config)
    params = torch_weights.from_torch(t5.network_shapes(network), given, "x")
    return T5(network, params, None, devices)


def t5_logits(reference):
    model = t5_model(reference)
    inputs = [jnp.asarray(reference[name]) for name in ("tokens", "mask", "answers")]
    with jax.default_matmul_precision("highest"):
        return jax.jit(model.network.apply)({"params": model.params}, *inputs)


def t5_answers(reference, num_sequences=1, **options):
    how = Decoding(max_length=12, **options)
    with jax.default_matmul_precision("highest"):
        answers = t5_model(reference).generate_tokens(
            reference["tokens"], reference["mask"], how, num_sequences=num_sequences
        )
    return np.asarray(answers)


def solver_samples(reference):
    """Sampler states after each step, for recorded network outputs."""
    kind = {
        "DPMSolverMultistepScheduler": solvers.DPMSolver,
        "DDIMScheduler": solvers.DDIM,
        "LCMScheduler": solvers.LCM,
    }[reference["config"]["_class_name"]]
    solver = kind.from_json(reference["config"])
    schedule = solver.schedule(len(reference["timesteps"]))
    np.testing.assert_array_equal(schedule.timesteps, reference["timesteps"])
    sample, clean = reference["start"], np.zeros_like(reference["start"])
    samples = []
    for i, output in enumerate(reference["outputs"]):
        row = jax.tree.map(lambda column, i=i: column[i], schedule)
        noise = reference["noise"][i] if solver.adds_noise else None
        sample, clean = solvers.step(row, sample, output, clean, noise)
        samples.append(np.asarray(sample))
    return np.stack(samples)


class RecordedTokenizer:
    """Answers with recorded tokens; the prompts are the rows' numbers."""

    def __init__(self, tokens):
        self.tokens = tokens
        self.model_max_length = len(tokens[0])

    def __call__(self, prompts, **_):
        rows = [0 if prompt == "" else int(prompt) for prompt in prompts]
        return type("Tokens", (), {"input_ids": [self.tokens[row] for row in rows]})


def pipeline(reference) -> StableDiffusion:
    """Our pipeline of the recorded configs; the tokens' row 0 is the empty prompt."""
    configs = reference["configs"]
    networks = Networks(
        text_encoder=clip_text.CLIPTextModel(
            clip_text.CLIPTextConfig.from_json(configs["text_encoder"])
        ),
        unet=unet.UNet2DCondition(unet.UNetConfig.from_json(configs["unet"])),
        vae=vae.AutoencoderKL(vae.VAEConfig.from_json(configs["vae"])),
    )
    names = {"text_encoder": clip_text.current_name, "vae": vae.current_name}
    params = {
        name: torch_weights.from_torch(
            shapes,
            weights(reference["weights"][name]),
            name,
            names.get(name, lambda name: name),
        )
        for name, shapes in networks.shapes().items()
    }
    solver = solvers.DPMSolver.from_json(configs["scheduler"])
    tokenizer = RecordedTokenizer(reference["tokens"])
    return StableDiffusion(networks, params, tokenizer, solver)


def pipeline_images(reference, guidance_scale):
    prompts = [str(row) for row in range(1, len(reference["tokens"]))]
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            pipeline(reference)(
                prompts,
                latents=reference["latents"],
                num_steps=int(reference["num_steps"]),
                guidance_scale=guidance_scale,
            )
        )


def audioldm(reference, devices=None) -> AudioLDM:
    """Our pipeline of the recorded configs; the tokens' row 0 is the empty prompt."""
    configs, given = reference["configs"], reference["weights"]
    networks = AudioLDMNetworks(
        clap_text.CLAPTextModel(
            clap_text.CLAPTextConfig.from_json(configs["text_encoder"])
        ),
        unet.UNet2DCondition(unet.UNetConfig.from_json(configs["unet"])),
        vae.AutoencoderKL(vae.VAEConfig.from_json(configs["vae"])),
        hifigan.HifiGan(hifigan.HifiGanConfig.from_json(configs["vocoder"])),
    )
    params = {
        name: torch_weights.from_torch(shapes, weights(given[name]), name)
        for name, shapes in networks.shapes().items()
        if name != "vocoder"
    }
    params["vocoder"] = hifigan.from_torch(
        networks.vocoder, weights(given["vocoder"]), "vocoder"
    )
    solver = solvers.DDIM.from_json(configs["scheduler"])
    tokenizer = RecordedTokenizer(reference["tokens"])
    return AudioLDM(networks, params, tokenizer, solver, devices)


def audioldm_waves(reference, guidance_scale):
    prompts = [str(row) for row in range(1, len(reference["tokens"]))]
    with jax.default_matmul_precision("highest"):
        return np.asarray(
            audioldm(reference)(
                prompts,
                latents=reference["latents"],
                num_steps=int(reference["num_steps"]),
                guidance_scale=guidance_scale,
                duration_s=float(reference["duration_s"]),
            )
        )


def vocoder(reference):
    """Our vocoder of the recorded config, and its variables."""
    network = hifigan.HifiGan(hifigan.HifiGanConfig.from_json(reference["config"]))
    given = weights(reference["weights"])
    return network, hifigan.from_torch(network, given, "vocoder")


def vocoder_waves(reference, lengths=None):
    network, variables = vocoder(reference)
    with jax.default_matmul_precision("highest"):
        return jax.jit(network.apply)(variables, reference["mels"], lengths)


def text_to_speech(reference, devices=None) -> TextToSpeech:
    """Our pipeline of the recorded configs; texts are the rows' numbers."""
    model = speecht5.SpeechT5ForTextToSpeech(
        speecht5.SpeechT5Config.from_json(reference["configs"]["model"])
    )
    network, variables = vocoder(
        {
            "config": reference["configs"]["vocoder"],
            "weights": reference["weights"]["vocoder"],
        }
    )
    variables = {"vocoder": variables}
    variables["model"] = torch_weights.variables_from_torch(
        speecht5.shapes(model),
        weights(reference["weights"]["model"]),
        "model",
        speecht5.current_name,
    )
    padding = model.config.pad_token_id
    rows = [[int(t) for t in row if t != padding] for row in reference["tokens"]]
    return TextToSpeech(model, network, variables, RecordedTokenizer(rows), devices)


def check_speech(reference, pipeline=None, rows=None):
    """Asserts that stops are those recorded, mels and waveforms within 1e-4."""
    pipeline = pipeline or text_to_speech(reference)
    rows = range(len(reference["tokens"])) if rows is None else rows
    arguments = ([str(row) for row in rows], reference["speakers"][list(rows)])
    options = {
        "keep": reference["keep"][list(rows)],
        "threshold": float(reference["threshold"]),
    }
    with jax.default_matmul_precision("highest"):
        spectrograms = pipeline.spectrograms(*arguments, **options)
        waveforms = pipeline(*arguments, **options)
    for name, (ours, lengths) in (("mel", spectrograms), ("wave", waveforms)):
        ours = np.asarray(ours)  # slices of it need no compilation
        expected = reference[f"{name}_lengths"]
        assert lengths.dtype == np.int32
        np.testing.assert_array_equal(lengths, expected[list(rows)])
        ends = np.cumsum(expected)
        for row, ours_of_row, length in zip(rows, ours, lengths, strict=True):
            theirs = reference[f"{name}s"][ends[row] - length : ends[row]]
            assert relative_error(ours_of_row[:length], theirs) < 1e-4
            assert not ours_of_row[length:].any()
