"""The weights that the authors of GPT-FL release: stage 2's, by name.

Those of pictures (github.com/AvestimehrResearchGroup/GPT-FL, `weight_download.sh`) are
files of one archive, whose SHA-256 is not published. Those of sounds lie in the
repository of FedAudio (github.com/zhang-tuo-pdf/FedAudio, `model/gpt-fl-weights`).
"""

import os
import pathlib
import shutil
import stat
import zipfile
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from gptfl_jax import artifacts, user_files, web_files
from gptfl_jax.errors import UserError, nearest
from gptfl_jax.released import weight_files

PICTURES = (
    "https://www.dropbox.com/scl/fi/66t6whm87o33imtu1clb6/weight.zip"
    "?rlkey=zlpgne44hev8x31bcdd3au8ay&dl=1"
)
SOUNDS = (
    "https://raw.githubusercontent.com/zhang-tuo-pdf/FedAudio/"
    "e91931fb0182ce45d2d0487b18502e8c55fc450e/model/gpt-fl-weights/"
)

# VGG-19 takes 558 MB.
_MOST_BYTES = 2**31


class Release(NamedTuple):
    """A file of weights.

    Attributes:
        model: name of the model.
        options: of the model, which the weights are of.
        labels: name of the label set.
        extra_classes: behind those of the label set.
        as_original: options with which the model computes what the authors' did.
        shape: of one input.
        file: its name.
        address: of the file, or of the archive that holds it.
    """

    model: str
    options: Mapping[str, Any]
    labels: str
    shape: tuple[int, ...]
    file: str
    address: str = PICTURES
    extra_classes: tuple[str, ...] = ()
    as_original: Mapping[str, Any] = MappingProxyType({})


_CIFAR, _LARGE = (32, 32, 3), (224, 224, 3)
_RESNET_20 = {"depth": 20, "norm": "batch", "track_running_stats": False}
_RESNET_18 = {"depth": 18, "stem": "imagenet", "norm": "batch"}
_RESNET_50 = {**_RESNET_18, "depth": 50}
_VGG_19 = {"depth": 19, "norm": "none"}
_CONVNET = {"depth": 3, "width": 128, "norm": "instance"}
_PADDED = {"masked": False}

# `_imagenet`: trained on from ImageNet's weights, by what the authors' code says of the
# two files that are for one model and data set.
RELEASES = {
    "convnet_cifar10": Release(
        *("convnet", _CONVNET, "cifar10", _CIFAR, "convnet_cifar10_1011.pth")
    ),
    "convnet_cifar100": Release(
        *("convnet", _CONVNET, "cifar100", _CIFAR, "convnet_cifar100_2011.pth")
    ),
    "convnet_flower": Release(
        *("convnet", _CONVNET, "flowers102", _LARGE, "convnet_flower_3002.pth")
    ),
    "resnet20_cifar10": Release(
        *("resnet", _RESNET_20, "cifar10", _CIFAR, "resnet20_cifar10.pth")
    ),
    "resnet18_cifar10_imagenet": Release(
        *("resnet_imagenet", _RESNET_18, "cifar10", _CIFAR),
        "resnet18_cifar10_pre_1010.pth",
    ),
    "resnet18_flower": Release(
        *("resnet_imagenet", _RESNET_18, "flowers102", _LARGE),
        "resnet18_flower_3001.pth",
    ),
    "resnet18_food101": Release(
        *("resnet_imagenet", _RESNET_18, "food101", _LARGE),
        "food101_syn_combined_resnet18_0.0002_3001.pth",
    ),
    "resnet18_food101_imagenet": Release(
        *("resnet_imagenet", _RESNET_18, "food101", _LARGE),
        "food101_syn_combined_resnet18_3001.pth",
    ),
    "resnet50_cifar100": Release(
        *("resnet_imagenet", _RESNET_50, "cifar100", _CIFAR),
        "resnet50_cifar100_pre_2007.pth",
    ),
    "resnet50_cifar100_imagenet": Release(
        *("resnet_imagenet", _RESNET_50, "cifar100", _CIFAR),
        "resnet50_cifar100_2006.pth",
    ),
    "vgg19_cifar10": Release(
        *("vgg", _VGG_19, "cifar10", _CIFAR, "vgg19_cifar10_4003.pth")
    ),
    "vgg19_cifar100": Release(
        *("vgg", _VGG_19, "cifar100", _CIFAR, "vgg19_cifar100_5001.pth")
    ),
    "audio_conv_rnn_speech_commands": Release(
        *("audio_conv_rnn", {}, "speech_commands", (101, 128), "gcommand.pth"),
        SOUNDS + "gcommand.pth#sha256="
        "ef7c4dfedcabb63b0580e86ed244121ad957a0aa875f8bedb15691b865d107f1",
        ("silence",),
        _PADDED,
    ),
    "audio_conv_rnn_esc50": Release(
        *("audio_conv_rnn", {}, "esc50", (501, 128), "esc50.pth"),
        SOUNDS + "esc50.pth",
        as_original=_PADDED,
    ),
}
"""The files by the names that a config takes."""


def fields(release: Release) -> str:
    """The model that a release is of, as a command line sets it."""
    options = [
        f"--config.model.options.{option}={value}"
        for option, value in release.options.items()
    ]
    return " ".join([f"--config.model.name={release.model}", *options])


def release(name: str) -> Release:
    """The release of this name.

    Raises:
        UserError: there is none.
    """
    if name not in RELEASES:
        near = nearest(name, RELEASES)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(RELEASES)}"
        raise UserError(f"{name}: GPT-FL's authors release no such weights; {hint}")
    return RELEASES[name]


def find(name: str, source: str = "") -> pathlib.Path:
    """The file of a release, downloaded where that is needed.

    Args:
        source: the address or path of the file, or of an archive that holds it, in
            place of the authors'.

    Raises:
        UserError: there is no such release, or it cannot be had.
    """
    wanted = release(name)
    try:
        file = weight_files.find(source or wanted.address)
    except web_files.DownloadFailed as error:
        raise UserError(
            f"{name}: {error}. Where the file, or an archive with {wanted.file} in it, "
            f"lies elsewhere: python -m train.weights --name={name} --url=<address, "
            "or path on this machine>"
        ) from error
    if not zipfile.is_zipfile(file) or _is_of_torch(file):
        return file
    return _taken_out(file, wanted.file)


def _is_of_torch(path: pathlib.Path) -> bool:
    """Whether a zip archive is what `torch.save` writes."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _taken_out(path: pathlib.Path, name: str) -> pathlib.Path:
    """A file of an archive, beside the archive."""
    target = path.with_name(name)
    if target.is_file():
        return target
    try:
        with zipfile.ZipFile(path) as archive:
            found = [
                member
                for member in archive.infolist()
                if pathlib.PurePosixPath(member.filename).name == name
                and stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
                and not pathlib.PurePosixPath(member.filename).parts[0] == "__MACOSX"
            ]
            if not found:
                inside = ", ".join(
                    user_files.printable(each) for each in archive.namelist()[:20]
                )
                raise UserError(
                    f"{path}: the archive holds no {name}, but {inside}: name another"
                )
            if found[0].file_size > _MOST_BYTES:
                raise UserError(
                    f"{path}: {name} has {found[0].file_size:,} bytes, more than "
                    "weights can need"
                )
            part = path.with_name(f".{name}.{os.getpid()}.part")
            try:
                with archive.open(found[0]) as packed, open(part, "wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
                os.replace(part, target)
            finally:
                part.unlink(missing_ok=True)
    except UserError:
        raise
    except OSError as error:
        raise artifacts.WriteError(
            f"cannot unpack {name} to {path.parent} ({error.strerror or error}): make "
            "room, or ask for the right to write there"
        ) from error
    except Exception as error:  # a damaged archive raises almost anything
        raise UserError(
            f"{path}: damaged ({user_files.brief(error)}): delete it, and it is "
            "downloaded again"
        ) from error
    return target
