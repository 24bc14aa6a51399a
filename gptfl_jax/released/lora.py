"""Low-rank updates of released weights (LoRA), in the forms that `diffusers` reads.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685): a
layer's weight W becomes

    W + scale * alpha / rank * up @ down

with `down` [rank, in] and `up` [out, rank]; of a convolution `down` is one to `rank`
channels, and `up` one of size 1 x 1. Here the sum is formed once, when W is read.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub, licences, weight_files

FILE = "pytorch_lora_weights.safetensors"
"""The name that `diffusers` gives such a file."""

# In the order of peft, of kohya's trainer, and of older versions of diffusers.
_MATRIX = re.compile(
    r"(?P<module>.+?)(?:\.lora_(?P<letter>[AB])(?:\.default)?"
    r"|\.lora_(?P<kohya>down|up)"
    r"|(?:\.lora_linear_layer|[._]lora)\.(?P<old>down|up))\.weight"
)
_ALPHA = re.compile(r"(?P<module>.+)\.alpha")
# What stands before a module's name, and the network that it is of.
_PREFIXES = {
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
}
_LONGEST_METADATA = 2**22


@dataclasses.dataclass
class _Layer:
    """What a file holds for one layer: names of weights."""

    down: str | None = None
    up: str | None = None
    alpha: str | None = None


@dataclasses.dataclass(frozen=True)
class Update:
    """How one layer changes."""

    source: str
    """The file, for messages."""
    down: Callable[[], np.ndarray]
    """[rank, in] or [rank, in, height, width]"""
    up: Callable[[], np.ndarray]
    """[out, rank] or [out, rank, 1, 1]"""
    factor: Callable[[int], float]
    """alpha / rank, by the rank."""

    def of(self, name: str, weight: np.ndarray, scale: float) -> np.ndarray:
        """The weight with the update added, in float32.

        Args:
            name: of the weight, for messages.
            weight: as PyTorch lays it out.
            scale: of the update.

        Raises:
            UserError: the update does not fit the weight.
        """
        down, up = (np.asarray(read(), np.float32) for read in (self.down, self.up))
        rank = down.shape[0] if down.ndim > 1 and up.ndim > 1 else 0
        window, outer = weight.shape[2:], up.shape[2:]
        # A matrix and a 1x1 convolution are the same; files hold one or the other.
        fits = (
            rank > 0
            and up.shape[:2] == (weight.shape[0], rank)
            and math.prod(outer) == 1
            and down.shape[1] == weight.shape[1]
            and (
                down.shape[2:] == window
                or math.prod(down.shape[2:]) == math.prod(window) == 1
            )
        )
        if not fits:
            raise UserError(
                f"{self.source}: an update of shapes {down.shape} and {up.shape} does "
                f"not fit {name} of shape {weight.shape}: it belongs to another model"
            )
        delta = up.reshape(-1, rank) @ down.reshape(rank, -1)
        factor = np.float32(scale * self.factor(rank))
        return weight.astype(np.float32) + factor * delta.reshape(weight.shape)


def find(path_or_id: hub.PathLike) -> pathlib.Path:
    """The file that a text stands for, downloaded where that is needed.

    Args:
        path_or_id: a `.safetensors` file; a folder, an asset or a Hugging Face
            repository that holds a `pytorch_lora_weights.safetensors`;
            "owner/name:file" for another file of a repository.

    Raises:
        UserError: there is none, or it is of another format.
    """
    text = os.fspath(path_or_id)
    whole = pathlib.Path(text).expanduser().is_dir()
    if not whole and weight_files.stands_for_file(text):
        file = weight_files.find(text)
    else:
        file = hub.snapshot(text, [FILE, "README.md"]) / FILE
    if file.suffix != ".safetensors":
        raise UserError(f"{text}: LoRA weights are read from .safetensors files alone")
    if not file.is_file():
        raise UserError(
            f"{text} holds no {FILE}: name its file of LoRA weights, as "
            f"{text.rstrip('/')}{'/' if whole else ':'}NAME.safetensors"
        )
    return file


def digest(path_or_id: hub.PathLike) -> str:
    """The SHA-256 of its file.

    Raises:
        UserError: as `find`.
    """
    with open(find(path_or_id), "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def licence_of(path_or_id: hub.PathLike) -> str:
    """Its licence, as the card beside it says; "unknown" without one."""
    text = os.fspath(path_or_id)
    path = pathlib.Path(text).expanduser()
    if path.is_file():
        return licences.licence_of(path.parent)
    if not path.is_dir():
        text = re.split("[@:]", text, maxsplit=1)[0]
    return licences.licence_of(text)


def read(
    path_or_id: hub.PathLike, modules: Mapping[str, Iterable[str]]
) -> dict[str, dict[str, Update]]:
    """The updates of a file, by the network and the layer they are for.

    Args:
        path_or_id: as for `find`.
        modules: the layers of each network ("unet", "text_encoder") that can be
            updated, as PyTorch names them: "mid_block.resnets.0.conv1".

    Raises:
        UserError: as `find`; the file is damaged, or holds anything that is no update
            of one of these layers.
    """
    file = find(path_or_id)
    weights = hub.open_weights(file)
    settings = _Settings(file)
    known = {name: set(layers) for name, layers in modules.items()}
    flat = {
        name: {layer.replace(".", "_"): layer for layer in layers}
        for name, layers in known.items()
    }
    found: dict[tuple[str, str], _Layer] = {}
    unknown = []
    for key in weights:
        place = _place(key, known, flat)
        if place is None:
            unknown.append(key)
            continue
        network, layer, part = place
        entry = found.setdefault((network, layer), _Layer())
        if getattr(entry, part) is not None:
            raise UserError(f"{file}: has {key} twice, under another name as well")
        setattr(entry, part, key)
    if unknown:
        raise UserError(
            f"{file}: {_listed(unknown)}: no update of a layer of this model. Name "
            "LoRA weights of the same Stable Diffusion, 1.x or 2.x, or none; other "
            "kinds (LoHa, LoKr, DoRA) are not read"
        )
    halves = [".".join(k) for k, each in found.items() if not (each.down and each.up)]
    if halves or not found:
        what = f"one of two matrices for {_listed(halves)}" if halves else "no LoRA"
        raise UserError(f"{file}: holds {what}: get the file again")

    updates: dict[str, dict[str, Update]] = {name: {} for name in known}
    for (network, layer), entry in found.items():
        alpha = entry.alpha and functools.partial(_number, file, weights, entry.alpha)
        updates[network][layer] = Update(
            str(file),
            functools.partial(weights.__getitem__, entry.down),
            functools.partial(weights.__getitem__, entry.up),
            functools.partial(settings.factor, network, layer, alpha),
        )
    return updates


def merged(
    weights: Mapping[str, np.ndarray],
    updates: Mapping[str, Update],
    scale: float,
    current_name: Callable[[str], str | None] = lambda name: name,
) -> Mapping:
    """Weights with the updates added, each when it is read.

    Args:
        weights: of a network, by the names of their file.
        updates: by layer.
        scale: of the updates.
        current_name: today's name of a weight of an older release.
    """

    def reader(name: str) -> Callable[[], np.ndarray]:
        current = current_name(name) or ""
        update = updates.get(current.removesuffix(".weight"))
        if update is None or not current.endswith(".weight"):
            return lambda: weights[name]
        return lambda: update.of(name, weights[name], scale)

    return hub.Weights({name: reader(name) for name in weights})


def _place(key, known, flat) -> tuple[str, str, str] | None:
    """The network, layer and part that a key of a file names; None: none of ours."""
    match = _MATRIX.fullmatch(key)
    if match:
        kind = match["letter"] or match["kohya"] or match["old"]
        part = "down" if kind in ("A", "down") else "up"
    elif match := _ALPHA.fullmatch(key):
        part = "alpha"
    else:
        return None
    module, network, names = match["module"], "unet", known
    for prefix, name in _PREFIXES.items():
        if module.startswith(prefix):
            network, module = name, module.removeprefix(prefix)
            names = flat if prefix.startswith("lora_") else known
            break
    if network not in names:
        return None
    module = f".{module}".replace(".processor.", ".").removeprefix(".")
    if network == "text_encoder":
        module = re.sub(r"^text_model[._]", "", module)
        module = re.sub(r"\.to_(q|k|v|out)(\.0)?$", r".\1_proj", module)
    elif module.endswith(".to_out"):
        module += ".0"
    if module not in names[network]:
        return None
    layer = module if names is known else flat[network][module]
    return network, layer, part


class _Settings:
    """What a file says of its updates beside the weights, as newer versions write it.

    Args:
        file: with the settings of peft's `LoraConfig` in its header, or without any.

    Raises:
        UserError: they are damaged, or ask for more than a LoRA.
    """

    def __init__(self, file: pathlib.Path):
        text = hub.read_metadata(file).get("lora_adapter_metadata", "{}")
        try:
            if len(text) > _LONGEST_METADATA:
                raise ValueError("too long")
            self._settings = json.loads(text)
            if not isinstance(self._settings, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}: its lora_adapter_metadata are damaged ({error}): get the "
                "file again"
            ) from None
        for name, value in self._settings.items():
            if name.endswith(("use_dora", "lora_bias")) and value:
                raise UserError(f"{file}: {name} = {value}: only LoRA itself is read")
        self._file = file

    def factor(
        self, network: str, layer: str, alpha: Callable[[], float] | None, rank: int
    ) -> float:
        """alpha / rank; 1 where the file names no alpha."""
        if alpha is not None:
            return alpha() / rank
        found = self._of(network, "lora_alpha")
        for pattern, value in (self._of(network, "alpha_pattern") or {}).items():
            # A name, or its end from a dot on. To peft it is a regular expression, but
            # who wrote the file could make one that takes forever.
            name = pattern.removeprefix("^")
            if not re.fullmatch(r"[\w.]+", name):
                raise UserError(
                    f"{self._file}: {network}.alpha_pattern has {pattern!r}, where "
                    "only names of layers are read: use another file"
                )
            if layer == name or (name == pattern and layer.endswith(f".{name}")):
                found = value
                break
        if found is None:
            return 1.0
        root = self._of(network, "use_rslora")
        return found / (math.sqrt(rank) if root else rank)

    def _of(self, network: str, name: str) -> Any:
        value = self._settings.get(f"{network}.{name}")
        takes = {"lora_alpha": (int, float), "alpha_pattern": dict, "use_rslora": bool}
        numbers = value.values() if isinstance(value, dict) else ()
        fits = value is None or isinstance(value, takes[name])
        if not fits or not all(type(each) in (int, float) for each in numbers):
            raise UserError(
                f"{self._file}: its metadata have {network}.{name} = {value!r}: get "
                "the file again"
            )
        return value


def _number(file, weights, name) -> float:
    value = np.asarray(weights[name], np.float32)
    if value.size != 1 or not np.isfinite(value).all():
        raise UserError(f"{file}: {name} is no number: get the file again")
    return float(value.reshape(()))


def _listed(names) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more
