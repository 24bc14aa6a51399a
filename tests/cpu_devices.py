"""A program of the tests on numbers of devices made of one CPU."""

import json
import os
import pathlib
import re
import subprocess
import sys

# Operations in which one device waits for others, in a program as XLA has compiled it.
_COLLECTIVE = r" (?:all-[a-z]+|reduce-scatter|collective-[a-z]+)(?:-start)?\("


def results_on(
    counts: tuple[int, ...], program: pathlib.Path, dump: pathlib.Path
) -> dict[int, dict]:
    """The JSON that `program COUNT` prints on each number of devices.

    Args:
        dump: where XLA writes the programs of the run on 2 devices.
    """
    flags = dict.fromkeys(counts, os.environ.get("XLA_FLAGS", ""))
    flags[2] = f"{flags[2]} --xla_dump_to={dump} --xla_dump_hlo_as_text"
    runs = {
        count: subprocess.Popen(
            [sys.executable, str(program), str(count)],
            stdout=subprocess.PIPE,
            env={**os.environ, "XLA_FLAGS": flags[count]},
        )
        for count in counts
    }
    outputs = {count: run.communicate()[0] for count, run in runs.items()}
    assert all(run.returncode == 0 for run in runs.values())
    return {count: json.loads(output) for count, output in outputs.items()}


def assert_no_waiting(dump: pathlib.Path, *names: str) -> None:
    """The programs called so are in the dump, and none in it has a collective."""
    programs = list(dump.glob("*after_optimizations.txt"))
    assert {*names} <= {path.name.split(".")[1] for path in programs}
    for path in programs:
        assert not re.findall(_COLLECTIVE, path.read_text()), path.name
