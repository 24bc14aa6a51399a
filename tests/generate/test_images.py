"""generate.images with a formula for a generator; test_image_runs.py has a real one."""

import contextlib
import errno
import io
import json
import math
import os
import zlib

import jax
import numpy as np
import PIL.Image
import pytest

from generate import images, prompts, sample_folder, samples
from gptfl_jax import artifacts, configuration, drawing, launch
from gptfl_jax.data import sources, synthetic
from gptfl_jax.errors import UserError
from gptfl_jax.interruption import Interrupted
from tests.small_generators import knows_every_word


class FormulaModel:
    """Pixels from prompt, key and guidance of a sample, in place of a pipeline."""

    tokenizer = staticmethod(knows_every_word)

    batch_sizes = []
    scalar_guidance = []
    loras = []

    @classmethod
    def from_pretrained(cls, model, *, dtype, solver, lora, lora_scale):
        assert model == "formula" and dtype == "float32" and solver == "auto"
        cls.loras.append((lora, lora_scale))
        return cls()

    def __call__(
        self,
        prompts,
        *,
        key,
        num_steps,
        guidance_scale,
        negative_prompts,
        height,
        width,
    ):
        assert (num_steps, negative_prompts) == (2, "blur")
        assert (height, width) == (None, None)
        self.batch_sizes.append(len(prompts))
        self.scalar_guidance.append(np.ndim(guidance_scale) == 0)
        scales = np.broadcast_to(guidance_scale, len(prompts))
        rows = zip(prompts, key, scales, strict=True)
        return jax.numpy.stack([formula(*row) for row in rows])


def formula(prompt, key, guidance):
    pixels = np.array(jax.random.bits(key, (5, 7, 3), "uint8"))
    pixels[0, 0] = zlib.crc32(prompt.encode()) % 256
    pixels[0, 1] = int(guidance * 10)
    return pixels


CLASSES = ("bird", "hot dog", "cat/dog")


def make_config(**fields):
    config = configuration.default_config("data", "prompts", "generate")
    config.prompts.classes = CLASSES
    config.prompts.method = "multi_domain"
    given = {
        "model": "formula",
        "samples_per_class": "6",
        "num_steps": 2,
        "guidance_choices": (1.0, 3.0, 7.5),
        "negative_prompt": "blur",
        "batch_size": 4,
        "preview_per_class": 2,
    }
    for name, value in (given | fields).items():
        config.generate[name] = value
    configuration.validate(config)
    return config


@pytest.fixture(autouse=True)
def formula_model(monkeypatch):
    monkeypatch.setattr(images, "StableDiffusion", FormulaModel)
    monkeypatch.setattr(FormulaModel, "batch_sizes", [])
    monkeypatch.setattr(FormulaModel, "scalar_guidance", [])
    monkeypatch.setattr(FormulaModel, "loras", [])
    return FormulaModel


@pytest.fixture
def workdir(tmp_path):
    prompts.run(make_config(), tmp_path)
    return tmp_path


def content(workdir):
    """All files of synthetic/ but the record, which holds the date."""
    folder = workdir / "synthetic"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Content of the folder that `make_config()` asks for."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "StableDiffusion", FormulaModel)
        prompts.run(make_config(), workdir)
        images.run(make_config(), workdir)
    return content(workdir)


def test_samples_are_what_their_lines_say(workdir, capsys):
    images.run(make_config(), workdir)
    samples = artifacts.read_manifest(workdir / "synthetic")
    # Every class's sample 0, then every class's sample 1, ...
    folders = ("bird", "hot_dog", "cat_dog")
    assert [sample.file for sample in samples] == [
        f"{folder}/{folder}_{i:05d}.png" for i in range(6) for folder in folders
    ]
    assert [sample.label for sample in samples] == [*CLASSES] * 6
    lists = json.loads((workdir / "prompts.json").read_text())["prompts"]
    for sample in samples:
        assert sample.prompt in lists[sample.label]
        assert sample.guidance in (1.0, 3.0, 7.5) and sample.model == "formula"
        pixels = np.asarray(PIL.Image.open(workdir / "synthetic" / sample.file))
        key = jax.random.key(sample.seed)
        assert (pixels == formula(sample.prompt, key, sample.guidance)).all()
    assert len({sample.prompt for sample in samples}) > 9
    assert len({sample.seed for sample in samples}) == 18
    assert {sample.guidance for sample in samples} == {1.0, 3.0, 7.5}
    files = set(content(workdir)) - {sample.file for sample in samples}
    assert files == {"manifest.jsonl", "preview.png", "settings.json"}
    assert (workdir / "synthetic" / "run.json").exists()
    out = capsys.readouterr().out
    assert (
        "18 images of 3 classes, 6 a class, by formula: 2 steps, guidance drawn" in out
    )
    assert f"18 images in {workdir / 'synthetic'}, made in " in out
    # The loader of stage 2 finds every sample under its class.
    data, report = synthetic.synthetic_pictures(workdir / "synthetic", CLASSES)
    assert report.loaded == 18 and not report.left_out
    assert data.labels.tolist() == [0, 1, 2] * 6


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_batch_size_changes_nothing(workdir, uninterrupted, formula_model, batch_size):
    images.run(make_config(batch_size=batch_size), workdir)
    assert content(workdir) == uninterrupted
    # One shape: the last batch is filled up. More than there are samples is not made.
    assert set(formula_model.batch_sizes) == {min(batch_size, 18)}
    assert not any(formula_model.scalar_guidance)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("point", ["before files", "after files", "after lines"])
@pytest.mark.parametrize("batch", [0, 2, 4])
def test_resumes_from_any_point(
    workdir, uninterrupted, formula_model, monkeypatch, point, batch
):
    # Calls with a batch; settings and the like are single files.
    calls = {"write_files": 0, "append_samples": 0}
    kill_in, before = {
        "before files": ("write_files", True),
        "after files": ("append_samples", True),
        "after lines": ("append_samples", False),
    }[point]

    dead = []

    def kill_at(name):
        original = getattr(artifacts, name)

        def replaced(*arguments):
            ours = name == "append_samples" or len(arguments[0]) > 1
            if ours and name == kill_in and calls[name] == batch:
                if not before:
                    original(*arguments)
                dead.append(True)
            if dead:
                raise Killed
            calls[name] += ours
            original(*arguments)

        return replaced

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(artifacts, name, kill_at(name))
        with pytest.raises(Killed):
            images.run(make_config(), workdir)
    lines = len(artifacts.read_manifest(workdir / "synthetic"))
    assert lines == min(18, 4 * batch + 4 * (point == "after lines"))
    formula_model.batch_sizes.clear()
    images.run(make_config(), workdir)
    assert content(workdir) == uninterrupted
    assert len(formula_model.batch_sizes) == math.ceil((18 - lines) / 4)


def test_ctrl_c_leaves_what_is_made(workdir, uninterrupted, monkeypatch, told):
    append = artifacts.append_samples

    def append_and_tell(*arguments):
        append(*arguments)
        told.set()

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "append_samples", append_and_tell)
        with pytest.raises(
            Interrupted, match="of 18 images are made; the same"
        ) as info:
            images.run(make_config(batch_size=1), workdir)
    made = len(artifacts.read_manifest(workdir / "synthetic"))
    assert 1 <= made < 18 and str(info.value).startswith(f"{made} of 18 ")
    told.clear()
    images.run(make_config(), workdir)
    assert content(workdir) == uninterrupted


def test_a_finished_folder_is_left_alone(workdir, monkeypatch, capsys):
    images.run(make_config(), workdir)
    before = content(workdir)
    times = {
        path: path.stat().st_mtime_ns
        for path in workdir.rglob("*")
        if path.is_file() and path.suffix in (".png", ".jsonl")
        if path.name != "preview.png"
    }
    monkeypatch.setattr(images, "StableDiffusion", None)  # must not even be loaded
    images.run(make_config(), workdir)
    assert content(workdir) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert "; 18 are there already" in capsys.readouterr().out


def test_damage_is_repaired(workdir, uninterrupted, formula_model):
    images.run(make_config(), workdir)
    folder = workdir / "synthetic"
    (folder / "bird" / "bird_00000.png").unlink()
    truncated = folder / "cat_dog" / "cat_dog_00005.png"
    truncated.write_bytes(truncated.read_bytes()[:40])
    (folder / "hot_dog" / ".hot_dog_00001.png.4711").write_bytes(b"left by a kill")
    (folder / "preview.png").unlink()
    lines = (folder / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    shuffled = lines[5:] + lines[:3] + lines[4:7] + [lines[3][:-20]]
    (folder / "manifest.jsonl").write_bytes(b"".join(shuffled))
    formula_model.batch_sizes.clear()
    images.run(make_config(), workdir)
    assert content(workdir) == uninterrupted
    assert len(formula_model.batch_sizes) == 2  # of bird 0 and hot dog 1, of cat/dog 5


def test_more_samples_are_added(workdir, uninterrupted, formula_model):
    images.run(make_config(samples_per_class="2"), workdir)
    few = content(workdir)
    assert len(artifacts.read_manifest(workdir / "synthetic")) == 6
    for name, data in few.items():
        assert name == "manifest.jsonl" or uninterrupted[name] == data
    formula_model.batch_sizes.clear()
    images.run(make_config(), workdir)
    assert content(workdir) == uninterrupted
    assert len(formula_model.batch_sizes) == 4  # not the batch that was there whole
    with pytest.raises(UserError, match=r"holds 12 samples more than are asked for"):
        images.run(make_config(samples_per_class="2"), workdir)
    assert content(workdir) == uninterrupted


def test_classes_are_added_and_keep_their_samples(workdir, uninterrupted):
    def config(classes):
        config = make_config()
        config.prompts.classes = classes
        return config

    for classes in (("bird",), ("owl", *CLASSES)):
        prompts.run(config(classes), workdir)
        images.run(config(classes), workdir)
    made = content(workdir)
    assert len(artifacts.read_manifest(workdir / "synthetic")) == 24
    same = [
        name for name in uninterrupted if name.startswith(("bird/", "hot_", "cat_"))
    ]
    assert len(same) == 18 and all(made[name] == uninterrupted[name] for name in same)
    prompts.run(config(("owl", "bird")), workdir)
    with pytest.raises(
        UserError, match="12 samples more .*at least as many samples and"
    ):
        images.run(config(("owl", "bird")), workdir)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_steps": 3}, r"config\.generate\.num_steps = 2, now it is 3"),
        ({"model": "other"}, r"config\.generate\.model = 'formula', now it is 'other'"),
        (
            {"guidance_choices": ()},
            r"guidance scales = \[1.0, 3.0, 7.5\], now .*\[7.5\]",
        ),
        ({"negative_prompt": ""}, r"negative_prompt = 'blur', now it is ''"),
        ({"dtype": "bfloat16"}, r"config\.generate\.dtype = 'float32', now"),
        ({"height": 8, "width": 8}, r"config\.generate\.height = 0, now it is 8"),
    ],
)
def test_a_changed_config_is_refused(workdir, uninterrupted, fields, message):
    images.run(make_config(), workdir)
    with pytest.raises(UserError, match=rf"{message}.*put it back.*another --workdir"):
        images.run(make_config(**fields), workdir)
    assert content(workdir) == uninterrupted


def test_another_seed_or_other_prompts_are_refused(workdir):
    images.run(make_config(), workdir)
    config = make_config()
    config.seed = 1
    with pytest.raises(UserError, match=r"config\.seed = 0, now it is 1"):
        images.run(config, workdir)
    config = make_config()
    config.prompts.domains = ("photo", "map")
    with pytest.raises(
        UserError,
        match=r"prompts\.json was made with config\.prompts\.domains = \[\], now it is "
        r"\['photo', 'map'\]: put it back, or .*python -m generate\.prompts",
    ):
        images.run(config, workdir)
    prompts.run(config, workdir)
    with pytest.raises(
        UserError, match="with another list of prompts for class 'bird'"
    ):
        images.run(config, workdir)


def test_a_retrained_model_is_refused(workdir, tmp_path, monkeypatch):
    model = tmp_path / "own model"
    artifacts.write_bytes(model / "unet" / "weights", b"x" * (3 << 20))
    monkeypatch.setattr(
        FormulaModel, "from_pretrained", lambda *_, **__: FormulaModel()
    )
    config = make_config(model=str(model))
    images.run(config, workdir)
    (model / "README.md").write_text("words about it")
    images.run(config, workdir)
    artifacts.write_bytes(model / "unet" / "weights", b"x" * ((3 << 20) - 1) + b"y")
    with pytest.raises(UserError, match="another content of the model's files, and"):
        images.run(config, workdir)


def test_guidance_of_config_and_method():
    ucg = {"guidance_choices": [1, 2, 3, 4, 5]}
    none = make_config(guidance_choices=(), guidance_scale=2.5)
    assert samples.guidance_scales(none, {}) == (2.5,)
    assert samples.guidance_scales(none, ucg) == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert samples.guidance_scales(make_config(), ucg) == (1.0, 3.0, 7.5)


def test_one_guidance_for_all_is_passed_as_a_number(workdir, formula_model):
    images.run(make_config(guidance_choices=(), guidance_scale=1.0), workdir)
    assert all(formula_model.scalar_guidance)
    samples = artifacts.read_manifest(workdir / "synthetic")
    assert {sample.guidance for sample in samples} == {1.0}


def test_counts_relative_to_the_real_data():
    config = make_config(samples_per_class="3x")
    digits = [str(digit) for digit in range(10)]
    labels = sources.load("sklearn_digits").train.labels
    real = [int((labels == digit).sum()) for digit in range(10)]
    counts = images.samples_per_class(config, digits)
    assert counts == {name: 3 * real[int(name)] for name in digits}
    assert len(set(counts.values())) > 1
    config.generate.samples_per_class = "0.5x"  # halves are rounded up
    halves = images.samples_per_class(config, ["8", "1"])
    assert halves == {"8": (real[8] + 1) // 2, "1": (real[1] + 1) // 2}
    config.generate.samples_per_class = "0.0001x"
    assert images.samples_per_class(config, ["3"]) == {"3": 1}
    config.data.options.test_blocks = 13
    config.generate.samples_per_class = "1x"
    assert sum(images.samples_per_class(config, digits).values()) == 130
    with pytest.raises(
        UserError, match="sklearn_digits has no bird, cat: give a number"
    ):
        images.samples_per_class(config, ["3", "bird", "cat"])


def test_counts_of_each_class():
    wanted = {"NORMAL": 9, "viral_pneumonia": "3", "covid": 4}
    config = make_config(samples_per_class=wanted)
    classes = ["COVID", "NORMAL", "Viral Pneumonia"]
    counts = images.samples_per_class(config, classes)
    assert list(counts.items()) == list(zip(classes, (4, 9, 3), strict=True))
    with pytest.raises(UserError, match="_class: Lung must be named, once; the"):
        images.samples_per_class(config, [*classes, "Lung"])
    with pytest.raises(UserError, match="no class is covid; the prompts' classes"):
        images.samples_per_class(config, classes[1:])
    config.generate.samples_per_class = {**wanted, "Covid": 4}
    with pytest.raises(UserError, match="COVID must be named, once"):
        images.samples_per_class(config, classes)
    config.generate.samples_per_class = {"8": "2x", "1": 5, "3": "1x"}
    real = np.bincount(sources.load("sklearn_digits").train.labels)
    expected = {"1": 5, "3": real[3], "8": 2 * real[8]}
    assert images.samples_per_class(config, ["1", "3", "8"]) == expected


def test_unequal_counts_go_round_by_round(workdir, monkeypatch):
    counts = {"bird": 1, "hot dog": 3, "cat/dog": 2}
    monkeypatch.setattr(images, "samples_per_class", lambda *_: counts)
    images.run(make_config(), workdir)
    labels = [sample.label for sample in artifacts.read_manifest(workdir / "synthetic")]
    assert labels == ["bird", "hot dog", "cat/dog", "hot dog", "cat/dog", "hot dog"]


def test_missing_or_foreign_prompts(tmp_path):
    command = rf"python -m generate\.prompts --config=\.\.\. --workdir={tmp_path}"
    with pytest.raises(UserError, match=rf"prompts\.json is missing.*{command}"):
        images.run(make_config(), tmp_path)
    for text in (
        *("", "[]", "{}", '{"prompts": {}}', '{"prompts": {"cat": []}}'),
        *('{"prompts": {"cat": ["a cat"]}, "made": 1}', '{"prompts": {"cat": "a"}}'),
    ):
        (tmp_path / "prompts.json").write_text(text)
        with pytest.raises(UserError, match=rf"holds no prompts by class.*{command}"):
            images.run(make_config(), tmp_path)
    # Written by hand, without a word on how.
    (tmp_path / "prompts.json").write_text('{"prompts": {"cat": ["a cat"]}}')
    images.run(make_config(), tmp_path)
    assert len(artifacts.read_manifest(tmp_path / "synthetic")) == 6


def test_changed_pictures_are_made_again(workdir, uninterrupted, capsys):
    images.run(make_config(), workdir)
    bird, other = (
        workdir / "synthetic" / name / f"{name}_00000.png"
        for name in ("bird", "hot_dog")
    )
    bird.write_bytes(other.read_bytes())
    whole = bytearray(other.read_bytes())
    whole[len(whole) // 2] ^= 4
    other.write_bytes(whole)
    capsys.readouterr()
    images.run(make_config(), workdir)
    assert "2 samples are gone or not as they were made" in capsys.readouterr().out
    assert content(workdir) == uninterrupted


def test_a_preview_leaves_broken_pictures_out(workdir, capsys):
    """Which only lines of an earlier version let through, as they have no digest."""
    images.run(make_config(), workdir)
    folder = workdir / "synthetic"
    lines = [each._replace(sha256=None) for each in artifacts.read_manifest(folder)]
    artifacts.write_manifest(folder, lines)
    broken = []
    for damaged in lines[:1], lines[1:6]:
        for path in (folder / each.file for each in damaged):
            whole = path.read_bytes()
            path.write_bytes(whole[:20] + bytes(len(whole) - 40) + whole[-20:])
            broken.append(path)
        capsys.readouterr()
        images.run(make_config(), workdir)
        out = capsys.readouterr().out
        for path in broken:
            assert f"left out of the preview, {path}: cannot be decoded" in out
        assert "Delete the file and start again: it is made anew" in out


def test_a_workdir_in_use_is_refused(workdir):
    with artifacts.lock(workdir):
        with pytest.raises(artifacts.WorkdirInUse, match="in use by another run"):
            images.run(make_config(), workdir)
    assert not (workdir / "synthetic").exists()


def test_full_disk_and_resume(workdir, uninterrupted, monkeypatch):
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) > 18:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(artifacts.WriteError, match="the disk is full. Free some"):
            images.run(make_config(), workdir)
    assert 0 < len(artifacts.read_manifest(workdir / "synthetic")) < 18
    images.run(make_config(), workdir)
    assert content(workdir) == uninterrupted


def test_unwritable_workdir(workdir):
    (workdir / "synthetic").write_bytes(b"not a folder")
    with pytest.raises(artifacts.WriteError, match="a file stands where a folder"):
        images.run(make_config(), workdir)
    (workdir / "synthetic").unlink()
    if os.geteuid() == 0:
        return  # root may write anywhere
    workdir.chmod(0o555)
    with contextlib.ExitStack() as stack:
        stack.callback(workdir.chmod, 0o755)
        with pytest.raises(artifacts.WriteError, match="it is read-only"):
            images.run(make_config(), workdir)


def test_whole_pngs_are_known(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    data = drawing.encode_png(image)
    assert (np.asarray(PIL.Image.open(io.BytesIO(data))) == image).all()
    path = tmp_path / "a.png"
    assert not images.is_whole_png(path)
    for broken in (b"", data[:-1], data[:20], data[1:], b"\0" * len(data)):
        path.write_bytes(broken)
        assert not images.is_whole_png(path)
    path.write_bytes(data)
    assert images.is_whole_png(path)


def test_preview_shows_the_first_samples(workdir):
    images.run(make_config(), workdir)
    sheet = np.asarray(PIL.Image.open(workdir / "synthetic" / "preview.png"))
    # 5x7 pixels enlarged 9 times; tiles are 63 pixels.
    for row, folder in enumerate(("bird", "hot_dog", "cat_dog")):
        for column in range(2):
            file = workdir / "synthetic" / folder / f"{folder}_{column:05d}.png"
            y, x = 2 + row * 65, sheet.shape[1] - 2 * 65 + column * 65
            tile = sheet[y : y + 45, x : x + 63]
            assert (tile[4::9, 4::9] == np.asarray(PIL.Image.open(file))).all()


def test_no_preview_when_none_is_asked_for(workdir, capsys):
    images.run(make_config(preview_per_class=0), workdir)
    assert not (workdir / "synthetic" / "preview.png").exists()
    assert "preview.png" not in capsys.readouterr().out


def test_preview_appears_before_the_end(workdir, monkeypatch):
    there = []
    put = sample_folder.SampleWriter._write

    def write(self, *arguments):
        put(self, *arguments)
        there.append((workdir / "synthetic" / "preview.png").exists())

    monkeypatch.setattr(sample_folder.SampleWriter, "_write", write)
    images.run(make_config(), workdir)
    # Two of each class, six samples: in the second of five batches of four.
    assert there == [False, True, True, True, True]


def test_shares_of_processes(monkeypatch):
    planned = list(range(10))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    shares = []
    for process in range(3):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        shares.append(samples.share(planned, 7))
    assert shares == [[[0, 1, 2], [9]], [[3, 4, 5]], [[6, 7, 8]]]


def test_help_and_refusals_on_the_command_line(tmp_path, config_file, capsys):
    sections = ("data", "prompts", "generate")
    launch.launch(images.run, sections, ["--help"])
    out = capsys.readouterr().out
    assert "Stage 1b" in out and "generate.samples_per_class" in out
    arguments = [f"--config={config_file}", f"--workdir={tmp_path}"]
    for extra, message in (
        ([], "prompts.json is missing: make it with `python -m generate.prompts"),
        (["--config.generate.batch_size=0"], "batch_size = 0: takes a whole number >="),
        (["--config.generate.num_step=3"], "did you mean config.generate.num_steps?"),
        (["--config.generate.samples_per_class=x"], "or such a multiple of the real"),
    ):
        with pytest.raises(SystemExit) as leaving:
            launch.launch(images.run, sections, [*arguments, *extra])
        assert leaving.value.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
