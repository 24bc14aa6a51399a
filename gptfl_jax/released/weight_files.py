"""Where a file of weights lies: at a path, at an address, or in a repository.

What is not on this machine is downloaded once, to the user's cache folder
(`$XDG_CACHE_HOME/gptfl-jax/weights` on Linux) or to that of Hugging Face.
"""

import hashlib
import os
import pathlib
import re
import urllib.parse

from gptfl_jax import web_files
from gptfl_jax.cache_folder import cache_folder
from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

TAKES = (
    "a file (.pth, .bin, .safetensors), its address (https://..., with "
    "#sha256=<digits> behind it to have it checked) or a file in a Hugging Face "
    "repository (owner/name:file)"
)
"""What stands for a file of weights, in words."""

TORCHVISION = "https://download.pytorch.org/models/"
"""Where torchvision's released files lie."""

# torchvision's names of files end in the first digits of their SHA-256.
_NAMED_BY_DIGEST = "download.pytorch.org"
_DIGEST = re.compile(r"-(?P<digits>[0-9a-f]{8,64})\.\w+")
_DIGITS = re.compile("[0-9a-fA-F]{8,64}")
_IN_REPOSITORY = re.compile(
    r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?:(?P<file>[\w./-]+)"
)


def find(reference: str | os.PathLike) -> pathlib.Path:
    """The file that a text stands for, downloaded where that is needed.

    Args:
        reference: a path; `https://host/file`, or `https://host/file#sha256=<digits>`
            with any number of the first digits; `owner/name:path/in/the/repository` or
            `owner/name@revision:path`.

    Raises:
        UserError: there is no such file, or it cannot be had.
    """
    text = os.fspath(reference)
    if web_files.is_address(text):
        return download(text)
    path = pathlib.Path(text).expanduser()
    named = _IN_REPOSITORY.fullmatch(text)
    if named and not path.exists():
        return _from_repository(text, **named.groupdict())
    if path.is_dir():
        return hub.find_weights(path / "model") or path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"{text}: there is no such file of weights; takes {TAKES}")
    return path


def stands_for_file(text: str) -> bool:
    """Whether a text looks like one that `find` takes, be the file there or not."""
    if web_files.is_address(text) or _IN_REPOSITORY.fullmatch(text):
        return True
    path = pathlib.Path(text).expanduser()
    return (
        path.is_file()
        or path.suffix in (".pth", ".bin", ".safetensors")
        or (path / "model.safetensors").is_file()
    )


def download(address: str) -> pathlib.Path:
    """The file at an address, in the user's cache folder.

    Raises:
        UserError: it cannot be had, or is another than the address says.
    """
    url, _, fragment = address.partition("#")
    name, _, digits = fragment.partition("=")
    if fragment and not (name == "sha256" and _DIGITS.fullmatch(digits)):
        raise UserError(
            f"{address}: behind # stands sha256= and 8 or more of the digits of the "
            "file's SHA-256"
        )
    parts = urllib.parse.urlsplit(url)
    file = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name
    if not re.fullmatch(r"[\w.+-]+", file) or file.startswith("."):
        raise UserError(f"{address}: is not the address of a file")
    if not digits and parts.hostname == _NAMED_BY_DIGEST:
        in_name = _DIGEST.search(file)
        digits = in_name["digits"] if in_name else ""
    # The digits are part of the place: another file under the same address is another.
    place = hashlib.sha256(f"{url}#{digits.lower()}".encode()).hexdigest()[:16]
    folder = cache_folder("weights") / place
    return web_files.download(url, folder / file, digits)


def _from_repository(
    text: str, repository: str, revision: str | None, file: str
) -> pathlib.Path:
    path = hub.snapshot(repository, [file], revision) / file
    if not path.is_file():
        raise UserError(f"{text}: the repository {repository} has no such file")
    return path
