"""Files that unpack to far more than they are: refused before memory is taken."""

import gzip
import io
import os
import pathlib
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from gptfl_jax.data import audio, images, sources
from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.released import hub
from tests.gptfl_jax.test_damaged_files import npy, peak_mb


def png_of(width: int, height: int) -> bytes:
    """Black, by its header; a thousandth of its size or less."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + check.to_bytes(4)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compressobj(1)
    content = b"".join(rows.compress(bytes(3 * width + 1)) for _ in range(height))
    content += rows.flush()
    begin = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return begin + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def wav_of(rate: int, samples: int) -> bytes:
    size = 2 * samples
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    body = b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + bytes(size)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tar_of(member: str, megabytes: int) -> bytes:
    """A compressed archive with a file of zeros that nobody needs."""
    info = tarfile.TarInfo(member)
    info.size = megabytes * 2**20
    # A file of gzip may consist of several, one after the other.
    zeros = gzip.compress(bytes(2**20), 1)
    return gzip.compress(info.tobuf()) + zeros * megabytes


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def read_picture(path: str) -> None:
    picture = images.read_picture(pathlib.Path(path), 4, 3)
    if picture.pixels is None:
        raise UserError(f"{path}: {picture.error}")


BOMBS = {
    "x.png": (
        lambda: png_of(13_300, 13_300),
        read_picture,
        "13300x13300 pixels, more than 67,108,864",
    ),
    "x.wav": (
        lambda: wav_of(1, 750_000),
        lambda path: audio.extract([audio.Clip(path)], audio.FeatureSettings()),
        "750,000 s of 1 channels at 1 Hz, .* cut it into parts",
    ),
    "cifar-10-python.tar.gz": (
        lambda: tar_of("unused", 1500),
        lambda path: sources.load("cifar10", str(pathlib.Path(path).parent)),
        "it unpacks to more than 268,435,456 bytes",
    ),
    "x.zip": (
        lambda: zip_of({f"{i}.npy": bytes(2**25) for i in range(9)}),
        read_speakers,
        "it unpacks to 301,989,888 bytes, more than 268,435,456",
    ),
    "x.bin": (
        lambda: zip_of({"a/data.pkl": b"\x80\x02N.", "a/data/0": bytes(2**28)}),
        hub.read_weights,
        "its parts are larger than the whole",
    ),
    "x.npy": (
        lambda: npy(np.zeros(4, "f4")).replace(
            b"(4,), }" + b" " * 8, b"(20000000000,)}"
        ),
        read_speakers,
        "its data are not those of float32 numbers of shape",
    ),
}


def test_bombs_are_refused_before_they_are_read(tmp_path, repository):
    for file, (make, _, _) in BOMBS.items():
        (tmp_path / file).write_bytes(make())
        assert (tmp_path / file).stat().st_size < 8e6
    path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run(command, env=environment, timeout=100, check=True)


def refuse_in_little_memory(folder: str) -> None:
    """In a process of its own, which never had more memory than it has now."""
    before = peak_mb()
    for file, (_, read, message) in BOMBS.items():
        with pytest.raises(UserError, match=message):
            read(os.path.join(folder, file))
        assert peak_mb() - before < 200, file


if __name__ == "__main__":
    refuse_in_little_memory(sys.argv[1])
