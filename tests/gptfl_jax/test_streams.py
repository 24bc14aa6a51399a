"""Output that nobody reads any more, as that of a program behind `| head`."""

import os
import subprocess
import sys

import pytest

from gptfl_jax.launch.streams import Plain


def test_a_stream_whose_reader_is_gone_takes_more():
    read, write = os.pipe()
    with open(write, "w") as file:
        stream = Plain(file)
        stream.write("a red \x1b[31mcat\n")
        stream.flush()
        assert os.read(read, 100) == b"a red \\x1b[31mcat\n"
        os.close(read)
        for _ in range(3):
            assert stream.write("a line\n" * 10_000) == 70_000
            stream.flush()


@pytest.mark.parametrize(
    ("arguments", "closed", "code"),
    ((["--help"], ["stdout"], 0), (["file.png"], ["stdout", "stderr"], 2)),
)
def test_a_program_ends_as_if_all_were_read(
    repository, monkeypatch, arguments, closed, code
):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    process = subprocess.Popen(
        [sys.executable, "-m", "federated.predict", *arguments],
        cwd=repository,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for name in closed:
        getattr(process, name).close()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code and not errors
