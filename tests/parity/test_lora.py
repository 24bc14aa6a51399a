"""LoRA files against what diffusers and peft make of them: the merged weights."""

import diffusers
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import torch_references
import transformers
from diffusers.utils import convert_state_dict_to_diffusers
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

from gptfl_jax.generators.diffusion import folders
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion

# Every kind of layer: of attention, of a feed-forward, projections of both forms and
# convolutions of 3 x 3 and 1 x 1.
UNET = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj"]
UNET += ["ff.net.2", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv_in"]
UNET += ["downsamplers.0.conv", "time_embedding.linear_1"]
TEXT = ["q_proj", "v_proj", "out_proj", "fc1"]


@pytest.fixture(scope="module")
def pipe(request, tmp_path_factory):
    """A torch pipeline, and the folder it is saved in."""
    folder = tmp_path_factory.mktemp(request.param)
    reference = torch_references.CASES[request.param]()
    configs = reference["configs"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>"]
    made = diffusers.StableDiffusionPipeline(
        unet=torch_references.filled(
            diffusers.UNet2DConditionModel.from_config(configs["unet"])
        ),
        vae=torch_references.filled(
            diffusers.AutoencoderKL.from_config(configs["vae"])
        ),
        text_encoder=torch_references.filled(
            transformers.CLIPTextModel(
                transformers.CLIPTextConfig(**configs["text_encoder"])
            )
        ),
        tokenizer=transformers.CLIPTokenizer(
            vocab={word: i for i, word in enumerate([*words, "<|endoftext|>"])},
            merges=[],
            model_max_length=12,
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder)
    return folder


def trained(network, seed, **options):
    """The network with a LoRA whose matrices are random, as after training."""
    network.add_adapter(peft.LoraConfig(**options), "default")
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if "lora_" in name:
            value.data = 0.2 * torch.randn(value.shape, generator=generator)
    return peft.get_peft_model_state_dict(network)


def saved(folder, pipe, form):
    """A file of LoRA weights in a form that diffusers has written or reads."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pipe)
    unet = trained(
        *(pipe.unet, 1),
        r=4,
        lora_alpha=2,
        target_modules=UNET,
        # Of kohya's files, diffusers takes one alpha for all layers of attention.
        rank_pattern={"conv1": 3},
        alpha_pattern={"conv2": 8},
        use_rslora=form == "root of the rank",
    )
    text = trained(pipe.text_encoder, 2, r=2, lora_alpha=2, target_modules=TEXT)
    if form in ("peft", "root of the rank"):
        configs = (pipe.unet.peft_config, pipe.text_encoder.peft_config)
        names = ("unet_lora_adapter_metadata", "text_encoder_lora_adapter_metadata")
        pipe.save_lora_weights(
            folder,
            unet,
            convert_state_dict_to_diffusers(text),
            **{
                name: config["default"].to_dict()
                for name, config in zip(names, configs, strict=True)
            },
        )
    elif form == "without alpha":
        parts = {"lora_A": "lora.down", "lora_B": "lora.up"}
        for letter, part in parts.items():
            unet = {name.replace(letter, part): value for name, value in unet.items()}
        pipe.save_lora_weights(folder, unet, text)
    elif form == "attention processors":
        state = {
            f"unet.{name.replace('.to_', '.processor.to_')}": value
            for name, value in unet.items()
            if ".to_" in name
        }
        for letter, part in (("A", "down"), ("B", "up")):
            state = {
                name.replace(".0.lora_" + letter, f"_lora.{part}").replace(
                    ".lora_" + letter, f"_lora.{part}"
                ): value
                for name, value in state.items()
            }
        safetensors.torch.save_file(state, folder / "pytorch_lora_weights.safetensors")
    else:
        state = {f"base_model.model.{name}": v for name, v in unet.items()}
        state = convert_state_dict_to_kohya(state)
        state = {
            f"lora_unet_{name.removeprefix('base_model_model_')}": value
            for name, value in state.items()
        }
        for name in [each for each in state if each.endswith("lora_down.weight")]:
            # As the trainer: half of each layer's rank.
            alpha = torch.tensor(len(state[name]) / 2)
            state[name.replace("lora_down.weight", "alpha")] = alpha
        safetensors.torch.save_file(state, folder / "pytorch_lora_weights.safetensors")


FORMS = ["peft", "root of the rank", "without alpha", "attention processors", "kohya"]


@pytest.mark.parametrize(
    "pipe, form",
    [("pipeline_1x", form) for form in FORMS] + [("pipeline_2x", "kohya")],
    indirect=["pipe"],
)
def test_merged_weights_equal_those_of_diffusers(pipe, form, tmp_path):
    saved(tmp_path, pipe, form)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(pipe)
    before = {name: v.numpy().copy() for name, v in theirs.unet.state_dict().items()}
    theirs.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    theirs.fuse_lora(lora_scale=0.7)
    theirs.unload_lora_weights()
    ours = StableDiffusion.from_pretrained(pipe, lora=tmp_path, lora_scale=0.7)
    changed = 0
    for name in ("unet", "text_encoder"):
        expected = getattr(theirs, name).state_dict()
        found = folders.weights_of(ours.params[name])
        for key, value in found.items():
            other = expected.get(key, expected.get(f"text_model.{key}")).numpy()
            np.testing.assert_allclose(
                value.reshape(other.shape), other, atol=2e-6, err_msg=key
            )
            changed += name == "unet" and np.abs(other - before[key]).max() > 0.01
    layers = 16 if form == "attention processors" else 30
    assert changed > layers
