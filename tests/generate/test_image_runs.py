"""generate.images as a user runs it: real processes, devices, and kills."""

import random

import jax
import numpy as np
import PIL.Image
import pytest

from generate import images
from gptfl_jax import artifacts, planning
from gptfl_jax.generators.pictures.stable_diffusion import StableDiffusion
from gptfl_jax.launch import config_files

from .runs import ALONE, Runs, content


@pytest.fixture(scope="module")
def runs(tmp_path_factory, config_file, repository):
    folder = tmp_path_factory.mktemp("runs")
    runs = Runs("generate.images", folder, config_file, repository)
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def alone(runs):
    workdir = runs.workdir("alone")
    runs.complete(workdir, *ALONE)
    return workdir


def assert_same_samples(workdir, expected):
    """The same files and lines; pixels may differ where a rounding to 8 bits turns.

    XLA does not promise one order of summation for all batch shapes. Here nothing
    differs; of the shipped generator's networks (batches of 1 to 64 on 1 to 8 devices)
    13 to 18 of 614,400 values did, by 1.
    """
    ours, theirs = content(workdir), content(expected)
    assert set(ours) == set(theirs)
    assert ours["manifest.jsonl"] == theirs["manifest.jsonl"]
    assert ours["settings.json"] == theirs["settings.json"]
    for sample in artifacts.read_manifest(expected / "synthetic"):
        one, other = (
            np.asarray(PIL.Image.open(each / "synthetic" / sample.file), np.int16)
            for each in (workdir, expected)
        )
        assert one.shape == other.shape == (8, 8, 3)
        assert np.abs(one - other).max() <= 1


def test_the_record_says_what_it_cost(alone, config_file):
    """As many operations as a dry run tells, but for what fills up batches."""
    config = config_files.read_config(str(config_file))
    planned = planning.total_flops(images.plan(config, alone, counted_only=True))
    found = artifacts.read_flops(alone / "synthetic")
    assert found["generation"] == pytest.approx(18 * found["sample"])
    # 5 batches of 4 for 18 samples.
    assert 0.9 * planned <= found["generation"] * 1.001 <= 1.002 * planned


def test_a_line_is_enough_to_make_its_sample_again(alone, tiny_model):
    samples = artifacts.read_manifest(alone / "synthetic")
    assert len(samples) == 18
    pipeline = StableDiffusion.from_pretrained(tiny_model)
    pictures = pipeline(
        [sample.prompt for sample in samples],
        key=jax.vmap(jax.random.key)(np.array([s.seed for s in samples])),
        num_steps=2,
        guidance_scale=np.array([sample.guidance for sample in samples]),
    )
    for sample, picture in zip(samples, np.asarray(pictures), strict=True):
        file = np.asarray(PIL.Image.open(alone / "synthetic" / sample.file), np.int16)
        assert np.abs(file - picture).max() <= 1
    assert len({picture.tobytes() for picture in np.asarray(pictures)}) == 18


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
    """Six kills -9, anywhere from before the first line to after the last but one."""
    workdir = runs.workdir("killed")
    manifest = workdir / "synthetic" / "manifest.jsonl"
    draw = random.Random(7)
    killed = 0
    for kill_at in (0, 1, 4, 9, 13, 16):
        code = runs(
            workdir,
            *ALONE,
            kill_at=kill_at,
            file=manifest,
            delay_s=draw.uniform(0, 0.05),
        )
        assert code in (-9, 0), runs.log.read_text()
        killed += code == -9
        listed = artifacts.read_manifest(workdir / "synthetic")
        for sample in listed:  # what has a line is there, and whole
            data = (workdir / "synthetic" / sample.file).read_bytes()
            assert data == content(alone)[sample.file]
    assert killed >= 4
    runs.complete(workdir, *ALONE)
    assert content(workdir) == content(alone)
    assert "are there already" in runs.log.read_text()


@pytest.mark.long
def test_two_processes_make_what_one_makes(runs, alone):
    """They begin, one goes on alone, and both finish."""
    workdir = runs.workdir("two processes")

    batch = "--config.generate.batch_size=2"
    codes, outputs = runs.both(workdir, batch, "--config.generate.samples_per_class=2")
    assert codes == [0, 0], outputs
    assert "in 2 processes, this is process 1" in outputs[1]
    assert "6 images in" in outputs[0] and "6 images in" not in outputs[1]
    runs.complete(workdir, *ALONE, "--config.generate.samples_per_class=3")
    codes, outputs = runs.both(workdir, batch)
    assert codes == [0, 0], outputs
    assert "; 9 are there already" in outputs[0]
    assert_same_samples(workdir, alone)
    # Both refuse what one refuses, without waiting for the other.
    codes, outputs = runs.both(workdir, "--config.generate.num_steps=3")
    assert codes == [2, 2], outputs
    assert "num_steps = 2, now it is 3" in outputs[1]
