"""All stages of every config file, at toy size on data of the released form.

What a config says is kept, but for sizes: the generator, the classifier, numbers of
samples, clients and rounds.
"""

import contextlib
import itertools
import json
import pathlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import PIL.Image
import pytest

from federated import simulate
from generate import images, prompts, speech
from gptfl_jax import artifacts, configuration, launch
from gptfl_jax.configuration.values import put
from gptfl_jax.labels import label_set
from tests import handwriting, recordings
from tests.small_generators import save_speech, save_stable_diffusion
from train import downstream

PICTURES = {
    "model.name": "logistic_regression",
    "model.options": {},
    "generate.model": "the tiny one",
    "generate.lora": "",  # which is of another model
    "generate.num_steps": 1,
    "generate.dtype": "float32",
    "generate.preview_per_class": 0,
}
PHOTOS = PICTURES | {"data.image_size": 8}
SOUNDS = {
    "data.options.cache": "",
    "data.options.features": {"num_mels": 4, "fft_size": 256},
    "model.options": {"widths": (4, 4), "features": 4, "hidden": 4},
}
SPOKEN = SOUNDS | {
    "generate.model": "the tiny one",
    "generate.preview_per_class": 0,
    "generate.max_seconds": 0.2,
}
FEW = {
    "train.epochs": 1,
    "federated.rounds": 1,
    "federated.cohort_size": 2,
    "federated.batch_size": 2,
    "federated.eval_every": 1,
    "federated.init": "synthetic",
}
TWO_CLIENTS = {
    "federated.partition_options.min_examples": 1,
    "federated.num_clients": 2,
}


# Data --------------------------------------------------------------------------------

RELEASED_CIFAR = {
    "cifar10": (
        "cifar-10-batches-py",
        ("batches.meta", "label_names"),
        [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
        "labels",
    ),
    "cifar100": (
        "cifar-100-python",
        ("meta", "fine_label_names"),
        ["train", "test"],
        "fine_labels",
    ),
}


def write_cifar(name: str, root: pathlib.Path) -> None:
    """Two examples a class and file."""
    folder, (meta, names_key), files, labels_key = RELEASED_CIFAR[name]
    (root / folder).mkdir()
    names = {names_key: list(label_set(name).classes)}
    (root / folder / meta).write_bytes(pickle.dumps(names))
    for seed, file in enumerate(files):
        labels = np.arange(len(names[names_key])).repeat(2)
        noise = np.random.default_rng(seed).integers(0, 99, (len(labels), 3072))
        pixels = (noise + labels[:, None]).astype(np.uint8)
        content = {"data": pixels, labels_key: labels.tolist()}
        (root / folder / file).write_bytes(pickle.dumps(content))


def write_folders(name: str, root: pathlib.Path) -> None:
    """Four pictures a class, in folders of the released names."""
    for label, each in enumerate(label_set(name).classes):
        for i in range(4):
            path = root / each.replace("NORMAL", "Normal") / "images" / f"{i}.png"
            if name == "food101":
                path = root / "images" / each / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((9, 9, 3), (2 * label + i) % 256, np.uint8)
            PIL.Image.fromarray(pixels).save(path)


def write_food101(root: pathlib.Path) -> None:
    write_folders("food101", root)
    (root / "meta").mkdir()
    for part, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        names = [f"{c}/{i}" for c in label_set("food101").classes for i in numbers]
        (root / "meta" / f"{part}.txt").write_text("\n".join(names))


def write_covid(root: pathlib.Path) -> None:
    write_folders("covid_radiography", root)
    mask = root / "COVID" / "masks" / "0.png"
    mask.parent.mkdir()
    mask.write_bytes(b"no picture: it is not to be read")


def write_femnist(root: pathlib.Path) -> None:
    writers = {f"w{n}": [*range(n, 62, 3)] for n in range(3)}
    for part in ("train", "test"):
        handwriting.write_leaf(root / part / "all_data_0.json", writers)


def write_words(root: pathlib.Path) -> None:
    """Two clips a word of three speakers, a validation and a test speaker."""
    lists: dict[str, list[str]] = {"validation": [], "testing": []}
    for label, word in enumerate(label_set("speech_commands").classes):
        for number, part in enumerate(("", "", "", "validation", "testing")):
            name = f"{word}/{number}a0b0c0d_nohash_0.wav"
            recordings.write_tone(root / name, label % 10, number % 3, label, 16_000)
            if part:
                lists[part].append(name)
    for part, names in lists.items():
        (root / f"{part}_list.txt").write_text("\n".join(names))


def write_esc50(root: pathlib.Path) -> None:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for label, name in enumerate(label_set("esc50").classes):
        for fold in (1, 5):
            file = f"{fold}-{label}-A-{label}.wav"
            rows.append(f"{file},{fold},{label},{name},False,{label},A")
            path = root / "audio" / file
            recordings.write_tone(path, label % 10, 0, label, 16_000)
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))


def write_urbansound8k(root: pathlib.Path) -> None:
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for label, name in enumerate(label_set("urbansound8k").classes):
        for fold in (1, 2, 10):
            file = f"{label}-{label}-0-{fold}.wav"
            rows.append(f"{file},{label},0.0,4.0,1,{fold},{label},{name}")
            path = root / "audio" / f"fold{fold}" / file
            recordings.write_tone(path, label, fold % 3, label, 16_000)
    (root / "metadata").mkdir()
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows))


def write_crema_d(root: pathlib.Path) -> None:
    rows = ["FileName,MultiModalVote"]
    for actor in (1001, 1050, 1060, 1070):
        for number, emotion in enumerate(("NEU", "HAP", "SAD", "ANG")):
            name = f"{actor}_DFA_{emotion}_XX"
            rows.append(f"{name},{emotion[0]}")
            path = root / "AudioWAV" / f"{name}.wav"
            recordings.write_tone(path, number, actor % 3, actor, 16_000)
    (root / "processedResults").mkdir()
    (root / "processedResults" / "summaryTable.csv").write_text("\n".join(rows))


def write_iemocap(root: pathlib.Path) -> None:
    for session in (1, 2, 3):
        dialog = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"]
        for number, code in enumerate(("neu", "exc", "sad", "ang")):
            for speaker, gender in enumerate("FM"):
                turn = f"{dialog}_{gender}{number:03}"
                lines.append(f"[1.0 - 2.0]\t{turn}\t{code}\t[2.5, 2.5, 2.5]")
                path = root / f"Session{session}/sentences/wav/{dialog}/{turn}.wav"
                recordings.write_tone(path, number, speaker, session, 16_000)
        table = root / f"Session{session}/dialog/EmoEvaluation/{dialog}.txt"
        table.parent.mkdir(parents=True)
        table.write_text("\n".join(lines))


def write_meld(root: pathlib.Path) -> None:
    """Twelve lines of each of two speakers in both parts."""
    folders = {"train": "train_splits", "test": "output_repeated_splits_test"}
    for part, folder in folders.items():
        rows = ["Utterance,Speaker,Sentiment,Dialogue_ID,Utterance_ID"]
        for number in range(12):
            feeling = ("neutral", "positive", "negative")[number % 3]
            for dialogue, speaker in enumerate(("Joey", "Phoebe")):
                rows.append(f"Hi,{speaker},{feeling},{dialogue},{number}")
                name = f"dia{dialogue}_utt{number}.wav"
                path = root / folder / "waves" / name
                recordings.write_tone(path, number % 3, dialogue, number, 16_000)
        (root / f"{part}_sent_emo.csv").write_text("\n".join(rows))


def write_fsdd(root: pathlib.Path) -> None:
    recordings.write_fsdd(root, takes=(0, 5))


def write_drumkits(root: pathlib.Path) -> None:
    names = ("kick", "snare", "tom", "hi-hat", "crash", "ride")
    recordings.write_drumkits(root, classes=names)


# Stages ------------------------------------------------------------------------------


class Case(NamedTuple):
    """A config at toy size."""

    changes: Mapping[str, Any]
    """Fields by dotted name."""
    write: Callable[[pathlib.Path], None] | None = None
    """The data set; None: it comes with a package, or is mocked."""
    arg: str = ""
    made: str = "pictures"
    """What stage 1 makes: pictures, speech, prompts for clips that the user brings, or
    nothing."""
    below: str = ""
    """Where in the data set's folder `data.folder` is."""


TFDS = PHOTOS | TWO_CLIENTS
CASES = {
    "caltech101": Case(TFDS, arg="prompts=ucg"),
    "cifar10": Case(
        PICTURES
        | TWO_CLIENTS
        | {"model.name": "convnet", "model.options": {"width": 4, "depth": 1}},
        lambda p: write_cifar("cifar10", p),
        "prompts=ucg",
    ),
    "cifar100": Case(
        PICTURES | TWO_CLIENTS, lambda p: write_cifar("cifar100", p), "prompts=ucg"
    ),
    "covid": Case(
        PHOTOS
        | TWO_CLIENTS
        | {
            "generate.samples_per_class": {
                "NORMAL": 2,
                "Viral Pneumonia": 1,
                "COVID": 1,
            }
        },
        write_covid,
    ),
    "crema_d": Case(SOUNDS, write_crema_d, "test_fold=1", "nothing"),
    "digits": Case(PICTURES | {"federated.num_clients": 20}),
    "drumkits": Case(
        SOUNDS | {"model.options": {"widths": (4, 4)}},
        write_drumkits,
        "test_kits=kit3",
        "prompts",
    ),
    "esc50": Case(SOUNDS | TWO_CLIENTS, write_esc50, "test_fold=5", "prompts"),
    "eurosat": Case(
        PHOTOS | TWO_CLIENTS, lambda p: write_folders("eurosat", p), "prompts=ucg"
    ),
    "femnist": Case(PICTURES, write_femnist),
    "flowers102": Case(TFDS),
    "food101": Case(PHOTOS | TWO_CLIENTS, write_food101, below="images"),
    "fsdd": Case(
        SPOKEN | {"model.options": {"widths": (4, 4)}},
        write_fsdd,
        "test_speaker=anna,epochs=1",
        "speech",
    ),
    "iemocap": Case(SOUNDS, write_iemocap, "test_fold=1", "nothing"),
    "meld": Case(SOUNDS, write_meld, "", "nothing"),
    "mnist": Case(PICTURES | TWO_CLIENTS),
    "speech_commands": Case(SPOKEN, write_words, "", "speech"),
    "urbansound8k": Case(
        SOUNDS | TWO_CLIENTS, write_urbansound8k, "test_fold=10,data=real", "nothing"
    ),
}
# The stages of these are one program, which tests/train runs.
GENERATORS = {"drums", "few_steps", "glyphs", "voices"}


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("generators")
    save_stable_diffusion(folder / "pictures", seed=0)
    save_speech(folder / "speech")
    return folder


def test_there_is_a_case_for_every_config():
    assert set(CASES) | GENERATORS == set(launch.installed_configs())


def of_toy_size(name: str, folder: pathlib.Path, generators: pathlib.Path):
    case = CASES[name]
    config = launch.read_config(f"{name}:{case.arg}")
    config.data.folder = str(folder / case.below)
    options = config.data.options
    for dotted, value in (FEW | dict(case.changes)).items():
        holder, _, key = dotted.rpartition(".")
        if holder.count(".") and holder.endswith("options"):
            configuration.get(config, holder)[key] = value
        else:
            put(config, dotted, value)
    assert options is config.data.options
    if "generate" in config and "generate.samples_per_class" not in case.changes:
        config.generate.samples_per_class = "2"
    if case.made == "pictures":
        config.generate.model = str(generators / "pictures")
    if case.made == "speech":
        config.generate.model = str(generators / "speech/model")
        config.generate.vocoder = str(generators / "speech/vocoder")
        config.generate.speaker_vectors = str(generators / "speech/speakers.zip")
    if case.made == "nothing":
        config.train.data, config.federated.init = "real", "synthetic"
    configuration.validate(config)
    return config


@pytest.fixture
def quick_compilation():
    """Every config compiles programs of its own, which run for a moment."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.long
@pytest.mark.usefixtures("quick_compilation")
@pytest.mark.parametrize("name", CASES)
def test_all_stages(name, tmp_path, generators):
    case, folder, workdir = CASES[name], tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    if case.write:
        case.write(folder)
    config = of_toy_size(name, folder, generators)
    mocked = contextlib.nullcontext()
    if config.data.source == "tfds":
        tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
        mocked = tensorflow_datasets.testing.mock_data(num_examples=12)
    with mocked:
        classes = ()
        if case.made != "nothing":
            prompts.run(config, workdir)
            classes = json.loads((workdir / "prompts.json").read_text())["prompts"]
        if case.made == "pictures":
            images.run(config, workdir)
        if case.made == "speech":
            speech.run(config, workdir)
        if case.made == "prompts":
            bring_clips(workdir, list(classes))
        downstream.run(config, workdir)
        simulate.run(config, workdir)
    if case.made in ("pictures", "speech"):
        made = artifacts.read_manifest(workdir / "synthetic")
        wanted = config.generate.samples_per_class
        counts = dict.fromkeys(classes, 2) if wanted == "2" else wanted.to_dict()
        labels = [sample.label for sample in made]
        assert {name: labels.count(name) for name in classes} == counts
    pretrained = [*lines_of(workdir / "pretrain")]
    assert np.isfinite(pretrained[-1]["loss"])
    (run,) = (workdir / "federated").iterdir()
    rounds = [*lines_of(run)]
    assert [line["step"] for line in rounds] == [0, 1]
    assert all(np.isfinite(line["loss"]) for line in rounds)
    described = json.loads((run / "classifier.json").read_text())
    if classes:
        assert set(classes) <= set(described["class_names"])


def lines_of(folder: pathlib.Path):
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        yield json.loads(line)


def bring_clips(workdir: pathlib.Path, classes: list[str]) -> None:
    samples = []
    for number, name in itertools.product(range(2), classes):
        file = f"{name}/{name}_{number:05d}.wav"
        pitch = classes.index(name) % 10
        recordings.write_tone(workdir / "synthetic" / file, pitch, 0, number, 16_000)
        samples.append(artifacts.Sample(file, name, "", number, None, "m", 0))
    artifacts.write_manifest(workdir / "synthetic", samples)
