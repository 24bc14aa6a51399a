"""Files from the web: whole and checked, and a download goes on where it was cut off.

What has come of a file lies beside it as `.<name>.part`, and what the server calls this
version of it as `.<name>.version`. A server that says it has another by now, or that
sends no parts of files, sends the whole file again.
"""

import contextlib
import hashlib
import http.client
import os
import pathlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import filelock

from gptfl_jax import artifacts, user_files
from gptfl_jax.errors import UserError
from gptfl_jax.progress import Progress, say

_BLOCK = 1 << 18
_MB = 10**6
_TRIES = 5
_FIRST_PAUSE_S = 1.0
_TIMEOUT_S = 60


class DownloadFailed(UserError):
    """A file cannot be had; `reason` is why, without its address and the remedy."""

    def __init__(self, url: str, reason: str, remedy: str):
        super().__init__(f"{url}: cannot be downloaded ({reason}): {remedy}")
        self.reason = reason


class _TryAgain(Exception):
    """The server or the way to it failed in a way that may pass."""


def is_address(text: str) -> bool:
    """Whether a text is the address of a file on the web."""
    return text.startswith(("https://", "http://"))


def download(url: str, path: artifacts.PathLike, sha256: str = "") -> pathlib.Path:
    """Downloads a file, unless it is there; of two processes one does, the other waits.

    Args:
        url: http or https.
        path: the file; its folder is made.
        sha256: hexadecimal digits that the SHA-256 of the file must begin with.

    Returns:
        `path`.

    Raises:
        DownloadFailed: it cannot be had, or is another than `sha256` says. What has
            come of it is kept, and the next call goes on from there.
        WriteError: the folder cannot be written to.
    """
    path = pathlib.Path(path)
    if path.is_file():
        return path
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, url):
        if not path.is_file():
            say(f"downloading {url}")
            _download(url, path, sha256.lower())
    return path


@contextlib.contextmanager
def _locked(path: pathlib.Path, url: str) -> Iterator[None]:
    lock = filelock.FileLock(_beside(path, "lock"))
    with _writing(path.parent):
        try:
            held = lock.acquire(blocking=False)
        except filelock.Timeout:
            say(f"waiting for another process that downloads {url}")
            held = lock.acquire()
    with held:
        yield


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise artifacts.WriteError(
            f"cannot write to {folder} ({error.strerror or error}): make room, or ask "
            "for the right to"
        ) from error


def _beside(path: pathlib.Path, ending: str) -> pathlib.Path:
    return path.with_name(f".{path.name}.{ending}")


def _download(url: str, path: pathlib.Path, sha256: str) -> None:
    part, version = _beside(path, "part"), _beside(path, "version")
    went_on = part.is_file() and part.stat().st_size > 0
    for attempt in range(_TRIES):
        before = part.stat().st_size if part.is_file() else 0
        try:
            _fetch(url, part, version, may_mix=bool(sha256))
            break
        except _TryAgain as error:
            came = part.stat().st_size if part.is_file() else 0
            if attempt + 1 == _TRIES:
                kept = f"; its first {came:,} bytes are kept" if came else ""
                raise DownloadFailed(
                    url,
                    str(error),
                    f"start again{kept}, or get the file by other means and give its "
                    "path",
                ) from error
            if came <= before:  # nothing came: the server may need a while
                time.sleep(_FIRST_PAUSE_S * 2**attempt)
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if not found.startswith(sha256):
        part.unlink()
        version.unlink(missing_ok=True)
        if went_on:  # of two versions, perhaps
            return _download(url, path, sha256)
        raise DownloadFailed(
            url,
            f"its SHA-256 is {found} and should begin with {sha256}",
            "it is damaged or another file: start again, or get it by other means and "
            "give its path",
        )
    with _writing(path.parent):
        os.replace(part, path)
        version.unlink(missing_ok=True)
    say(f"downloaded {size:,} bytes, SHA-256 {found}")


def _fetch(url: str, part: pathlib.Path, version: pathlib.Path, may_mix: bool) -> None:
    """Appends to `part` what is missing of a file.

    Args:
        version: what the server called the version that `part` is of.
        may_mix: whether a mixture of two versions would be noticed afterwards.
    """
    have = part.stat().st_size if part.is_file() else 0
    known = version.read_text() if version.is_file() else ""
    headers = {"User-Agent": "gptfl-jax", "Accept-Encoding": "identity"}
    if have and (known or may_mix):
        headers["Range"] = f"bytes={have}-"
        if known:
            headers["If-Range"] = known
    try:
        reply = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # more is here than there
            part.unlink()
            raise _TryAgain("the server has less of it by now") from error
        reason = f"{error.code} {error.reason}"
        if error.code == 429 or error.code >= 500:
            raise _TryAgain(reason) from error
        raise DownloadFailed(
            url,
            reason,
            "check the address, or get the file by other means and give its path",
        ) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise _TryAgain(_words(reason)) from error
    except ValueError as error:
        raise DownloadFailed(url, str(error), "check the address") from error
    with reply:
        if reply.headers.get_content_type() == "text/html":
            raise DownloadFailed(
                url,
                "the server sends a page in its place",
                "open the address in a browser, which shows why, or get the file by "
                "other means and give its path",
            )
        if reply.status != 206 or not _begins_at(reply, have):
            have = 0
        length = reply.headers.get("Content-Length", "")
        size = have + int(length) if length.isdecimal() else None
        named = reply.headers.get("ETag") or reply.headers.get("Last-Modified") or ""
        # A weak tag is that of any file of the same meaning.
        version.write_text("" if named.startswith("W/") else named)
        _append(reply, part, have, size)


def _begins_at(reply: http.client.HTTPResponse, byte: int) -> bool:
    given = reply.headers.get("Content-Range", "")
    return re.match(rf"bytes {byte}-", given) is not None


def _append(
    reply: http.client.HTTPResponse, part: pathlib.Path, have: int, size: int | None
) -> None:
    with contextlib.ExitStack() as stack:
        with _writing(part.parent):
            file = stack.enter_context(open(part, "ab" if have else "wb"))
        bar = Progress(-(-size // _MB), "MB", have // _MB) if size else None
        if bar is not None:
            stack.enter_context(bar)
        while True:
            try:
                block = reply.read(_BLOCK)
            except (OSError, http.client.HTTPException) as error:
                raise _TryAgain(_words(error)) from error
            if not block:
                break
            with _writing(part.parent):
                file.write(block)
            have += len(block)
            if bar is not None:
                bar.update(have // _MB - bar.done)
        with _writing(part.parent):
            file.flush()
            os.fsync(file.fileno())
    if size is not None and have != size:
        raise _TryAgain(f"the connection ended after {have:,} of {size:,} bytes")


def _words(error: object) -> str:
    return user_files.brief(error) if isinstance(error, Exception) else str(error)
