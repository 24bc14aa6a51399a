"""generate.speech as a user runs it: real processes, devices, and kills."""

import random

import numpy as np
import pytest
import soundfile
from PIL import Image

from generate import samples
from gptfl_jax import artifacts
from gptfl_jax.data import audio
from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.generators.speech.text_to_speech import TextToSpeech

from .runs import ALONE, Runs, content


@pytest.fixture(scope="module")
def runs(tmp_path_factory, speech_config_file, repository):
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs("generate.speech", folder, speech_config_file, repository)
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def alone(runs):
    workdir = runs.workdir("alone")
    runs.complete(workdir, *ALONE)
    return workdir


def clips(workdir):
    """The samples of each file, as 16-bit numbers."""
    folder = workdir / "synthetic"
    result = {}
    for sample in artifacts.read_manifest(folder):
        wave, rate = soundfile.read(folder / sample.file, dtype="int16")
        assert rate == 16000 and wave.ndim == 1
        result[sample.file] = wave.astype(int)
    return result


def without_digests(workdir):
    """The lines of a manifest but for their digests, which are those of the files."""
    folder = workdir / "synthetic"
    lines = artifacts.read_manifest(folder)
    for line in lines:
        assert line.sha256 == artifacts.digest((folder / line.file).read_bytes())
    return [line._replace(sha256=None) for line in lines]


def assert_same_samples(workdir, expected):
    """The same files and lines; a clip may differ by roundings."""
    ours, theirs = content(workdir), content(expected)
    assert set(ours) == set(theirs)
    assert ours["settings.json"] == theirs["settings.json"]
    assert without_digests(workdir) == without_digests(expected)
    for file, wave in clips(expected).items():
        assert np.abs(clips(workdir)[file] - wave).max() <= 2


def test_a_line_is_enough_to_make_its_sample_again(alone, tiny_speech):
    lines = artifacts.read_manifest(alone / "synthetic")
    assert len(lines) == 18 and {line.speaker for line in lines} == {0, 1, 2}
    assert {line.prompt for line in lines} == {"bird", "hot dog", "no"}
    pipeline = TextToSpeech.from_pretrained(
        tiny_speech / "model", tiny_speech / "vocoder"
    )
    vectors = read_speakers(tiny_speech / "speakers.zip").vectors
    waves, lengths = pipeline(
        [line.prompt for line in lines],
        vectors[[line.speaker for line in lines]],
        key=samples.keys(lines),
        threshold=0.335,
        max_seconds=5.0,
    )
    assert len(set(lengths.tolist())) > 4  # some end by themselves
    files = clips(alone)
    for line, wave, length in zip(lines, np.asarray(waves), lengths, strict=True):
        whole = np.round(np.clip(wave[:length], -1, 1 - 2**-15) * 2**15)
        trimmed = audio.trim_silence(whole, 16000, 40.0)
        assert np.abs(files[line.file] - trimmed).max() <= 2
    assert len({wave.tobytes() for wave in files.values()}) == 18
    with Image.open(alone / "synthetic" / "preview.png") as preview:
        assert preview.size[0] > 2 * 128 and preview.size[1] >= 3 * 128


@pytest.mark.parametrize("devices, batch_size", [(2, 7), (8, 64)])
def test_devices_and_batch_size_change_nothing(runs, alone, devices, batch_size):
    workdir = runs.workdir(f"on {devices}")
    runs.complete(
        workdir,
        f"--cpu_devices={devices}",
        f"--config.generate.batch_size={batch_size}",
    )
    assert f"on {devices} CPU devices" in runs.log.read_text()
    assert_same_samples(workdir, alone)


@pytest.mark.long
def test_kills_change_nothing(runs, alone):
    workdir = runs.workdir("killed")
    manifest = workdir / "synthetic" / "manifest.jsonl"
    draw = random.Random(7)
    killed = 0
    for kill_at in (0, 1, 6, 13):
        code = runs(
            workdir,
            *ALONE,
            kill_at=kill_at,
            file=manifest,
            delay_s=draw.uniform(0, 0.05),
        )
        assert code in (-9, 0), runs.log.read_text()
        killed += code == -9
        for sample in artifacts.read_manifest(workdir / "synthetic"):
            data = (workdir / "synthetic" / sample.file).read_bytes()
            assert data == content(alone)[sample.file]
    assert killed >= 3
    runs.complete(workdir, *ALONE)
    assert content(workdir) == content(alone)
    assert "are there already" in runs.log.read_text()


@pytest.mark.long
def test_two_processes_make_what_one_makes(runs, alone):
    workdir = runs.workdir("two processes")
    batch = "--config.generate.batch_size=2"
    few = "--config.generate.samples_per_class=2"
    codes, outputs = runs.both(workdir, batch, few)
    assert codes == [0, 0], outputs
    assert "6 clips in" in outputs[0] and "6 clips in" not in outputs[1]
    runs.complete(workdir, *ALONE)
    assert "; 6 are there already" in runs.log.read_text()
    assert_same_samples(workdir, alone)
