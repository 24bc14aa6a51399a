"""Features from pretrained speech networks: wav2vec 2.0 and those of its kind.

What a network says of a recording is its last hidden state. It runs in PyTorch, by
transformers, which the extra `features` installs. Of a model's folder JSON and
safetensors are read, and nothing in it is executed.
"""

import functools
import pathlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from gptfl_jax import user_files
from gptfl_jax.errors import UserError, shown
from gptfl_jax.released import hub

_CONFIGS = ("config.json", "preprocessor_config.json")
_WEIGHTS = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
)
# DistilHuBERT is a small HuBERT.
_KINDS = ("hubert", "wav2vec2", "wavlm")
# A window of more samples is none of speech, nor are so many features.
_MOST = 2**16

_lock = threading.Lock()


class Shape(NamedTuple):
    """What a network takes and gives."""

    sample_rate_hz: int
    hop: int
    """Samples from one frame to the next."""
    window: int
    """Samples that a frame sees before the transformer; there is none of fewer."""
    num_features: int


@functools.lru_cache(maxsize=8)
def shape(model: str) -> Shape:
    """Reads the configuration of a network.

    Args:
        model: its folder in the format of Hugging Face, or a repository there.

    Raises:
        UserError: there is none, it is of another kind, or its files are damaged.
    """
    folder = hub.snapshot(model, _CONFIGS)
    config, heard = (hub.read_json(folder / name) for name in _CONFIGS)
    path = folder / "config.json"
    if (kind := config.get("model_type")) not in _KINDS:
        raise UserError(
            f"{path}: model_type is {shown(kind)}: features come from a network "
            f"of {', '.join(_KINDS)}"
        )
    strides, kernels = config.get("conv_stride"), config.get("conv_kernel")
    rate, features = heard.get("sampling_rate"), config.get("hidden_size")
    for name, numbers in (
        ("conv_stride", strides),
        ("conv_kernel", kernels),
        ("hidden_size", [features]),
        ("sampling_rate", [rate]),
    ):
        if not _are_sizes(numbers):
            where = folder / "preprocessor_config.json" if name[0] == "s" else path
            raise UserError(f"{where}: {name} is missing or damaged: get it again")
    hop, window = 1, 1
    for stride, kernel in zip(strides, kernels, strict=False):
        window += (kernel - 1) * hop
        hop *= stride
    if len(strides) != len(kernels) or max(hop, window) > _MOST:
        raise UserError(
            f"{path}: conv_stride and conv_kernel do not fit: get the file again"
        )
    return Shape(rate, hop, window, features)


def _are_sizes(numbers: Any) -> bool:
    return (
        isinstance(numbers, list)
        and 0 < len(numbers) <= 16
        and all(type(each) is int and 0 < each <= _MOST for each in numbers)
    )


@functools.lru_cache(maxsize=8)
def digest(model: str) -> str:
    """What features depend on: a folder's content, or a repository's name."""
    return hub.model_digest(model) if pathlib.Path(model).is_dir() else model


def compute(
    waveform: Float[np.ndarray, " samples"], model: str
) -> Float32[np.ndarray, "frames features"]:
    """The last hidden state of a network on a recording.

    Frames are as far apart as `shape` says; a recording shorter than a window is padded
    with zeros to one.

    Args:
        waveform: at the network's sample rate.
        model: as `shape` takes it.

    Raises:
        UserError: as `shape`, the weights are missing or damaged, or PyTorch is.
    """
    lacking = shape(model).window - len(waveform)
    waveform = np.pad(waveform.astype(np.float32), (0, max(0, lacking)))
    # One at a time: PyTorch uses all cores for each.
    with _lock:
        return _network(model)(waveform)


@functools.lru_cache(maxsize=2)
def _network(model: str) -> Callable[[np.ndarray], np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"features.kind = {model!r}: a speech network needs PyTorch "
            f"({user_files.brief(error)}): pip install 'gptfl-jax[features]'"
        ) from error
    import transformers

    folder = hub.snapshot(model, (*_CONFIGS, *_WEIGHTS))
    if not any((folder / name).is_file() for name in (_WEIGHTS[0], _WEIGHTS[2])):
        raise hub.missing_weights((_WEIGHTS[0], _WEIGHTS[2]), folder)
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        prepare = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder, **safe)
        network, report = transformers.AutoModel.from_pretrained(
            folder,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **safe,
        )
    except Exception as error:  # damaged files raise almost anything
        raise hub.BadWeights(
            f"{folder}: cannot be read as a speech network "
            f"({user_files.brief(error)}): get the model again"
        ) from error
    # What masks frames in pretraining is not used here, and some releases lack it.
    lacking = sorted(set(report["missing_keys"]) - {"masked_spec_embed"})
    if lacking:
        raise hub.BadWeights(
            f"{folder}: its weights lack {lacking[0]}: get the model again"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device).eval()

    def apply(waveform: np.ndarray) -> np.ndarray:
        inputs = prepare(
            waveform, sampling_rate=prepare.sampling_rate, return_tensors="pt"
        )
        with torch.inference_mode():
            hidden = network(inputs.input_values.to(device)).last_hidden_state
        return hidden[0].float().cpu().numpy()

    return apply
