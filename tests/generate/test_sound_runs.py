"""generate.sounds as a user runs it: devices, processes and kills."""

import numpy as np
import pytest
import soundfile

from gptfl_jax import artifacts

from .runs import ALONE, Runs, content

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sounds_config_file, repository):
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs("generate.sounds", folder, sounds_config_file, repository)
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def alone(runs):
    workdir = runs.workdir("alone")
    runs.complete(workdir, *ALONE)
    return workdir


def assert_same_samples(workdir, expected):
    """The same files and lines; a clip may differ by roundings."""
    lines = [artifacts.read_manifest(w / "synthetic") for w in (workdir, expected)]
    plain = [[line._replace(sha256=None) for line in each] for each in lines]
    assert plain[0] == plain[1] and len(plain[0]) == 16
    for line in lines[0]:
        ours, theirs = (
            soundfile.read(w / "synthetic" / line.file, dtype="int16")[0].astype(int)
            for w in (workdir, expected)
        )
        assert np.abs(ours - theirs).max() <= 2


def test_devices_and_batch_size_change_nothing(runs, alone):
    workdir = runs.workdir("on 2")
    runs.complete(workdir, "--cpu_devices=2", "--config.generate.batch_size=5")
    assert "on 2 CPU devices" in runs.log.read_text()
    assert_same_samples(workdir, alone)


def test_kills_change_nothing(runs, alone):
    workdir = runs.workdir("killed")
    manifest = workdir / "synthetic" / "manifest.jsonl"
    batch = "--config.generate.batch_size=4"
    for kill_at in (0, 4, 9):
        runs(workdir, *ALONE, batch, kill_at=kill_at, file=manifest)
    runs.complete(workdir, *ALONE, batch)
    assert_same_samples(workdir, alone)
    assert "are there already" in runs.log.read_text()
    assert set(content(workdir)) == set(content(alone))


def test_two_processes_make_what_one_makes(runs, alone):
    workdir = runs.workdir("two processes")
    codes, outputs = runs.both(workdir, "--config.generate.batch_size=4")
    assert codes == [0, 0], outputs
    assert_same_samples(workdir, alone)
