"""Every reader of files that users bring, fed damaged ones.

A reader either loads a file or says in one line which file it is and what to do: no
traceback, no hang, no gigabytes.
"""

import functools
import io
import json
import os
import pathlib
import pickle
import resource
import signal
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import soundfile

from gptfl_jax import prompting
from gptfl_jax.data import audio, partition, sources, speech_models
from gptfl_jax.errors import UserError
from gptfl_jax.generators.diffusion.solvers import DDIM, DPMSolver
from gptfl_jax.generators.diffusion.unet import UNetConfig
from gptfl_jax.generators.diffusion.vae import VAEConfig
from gptfl_jax.generators.pictures.clip_text import CLIPTextConfig
from gptfl_jax.generators.speech.hifigan import HifiGanConfig
from gptfl_jax.generators.speech.speakers import read_speakers
from gptfl_jax.generators.speech.speecht5 import SpeechT5Config
from gptfl_jax.generators.text.t5 import T5Config
from gptfl_jax.released import hub
from tests import handwriting, mutations, recordings

REFERENCES = pathlib.Path(__file__).parents[1] / "references"


class Reader(NamedTuple):
    """A file, and what reads it."""

    file: str
    """In the folder that `prepare` fills."""
    prepare: Callable[[pathlib.Path], None]
    read: Callable[[pathlib.Path], Any]
    """Takes the folder."""
    reports: str = ""
    """What it says on damage in place of an error, where it leaves files out."""


def of_binary(content: bytes, count: int = 12) -> Iterator[tuple[str, bytes]]:
    """Cut short, and with bytes overwritten, most of them in its first half."""
    yield from mutations.of_bytes(content)
    spread = (np.linspace(0, 1, count) ** 2 * (len(content) - 1)).astype(int)
    for at in sorted({*range(min(24, len(content))), *spread.tolist()}):
        yield f"cut at {at}", content[:at]
        for value in (0x00, 0xFF, content[at] ^ 1):
            yield (
                f"byte {at} = {value}",
                content[:at] + bytes([value]) + content[at + 1 :],
            )
        yield (
            f"4 bytes at {at} are high",
            content[:at] + b"\xff" * 4 + content[at + 4 :],
        )


def of_table(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A CSV file of two rows with each cell in turn damaged."""
    yield from of_binary(content)
    head, first, second = content.decode().splitlines()
    cells = first.split(",")
    for column in range(len(cells)):
        for wrong in (
            *("", "-1", "99", "1e999", "nan", "9" * 5000, '"', "a\0b", "\x1b[31m"),
            *("../../x.wav", "/etc/passwd", "x/y", "..", "é", "x" * 200_000),
        ):
            row = ",".join([*cells[:column], wrong, *cells[column + 1 :]])
            yield (
                f"cell {column} = {wrong[:20]!r}",
                f"{head}\n{row}\n{second}\n".encode(),
            )
        yield (
            f"row ends at cell {column}",
            f"{head}\n{','.join(cells[:column])}".encode(),
        )
        names = head.split(",")
        names[column] = "other"
        yield f"no column {column}", f"{','.join(names)}\n{first}".encode()


def json_of(content: bytes) -> Iterator[tuple[str, bytes]]:
    return mutations.of_json(json.loads(content))


# The files --------------------------------------------------------------------------


def cifar_rows(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3072), np.uint8)


def write_cifar(folder: pathlib.Path, binary: bool = False) -> None:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    classes = [f"name{i}" for i in range(10)]
    for name in names:
        if binary:
            labels = np.array([[3], [9]], np.uint8)
            content = np.hstack([labels, cifar_rows()]).tobytes()
            (folder / f"{name}.bin").write_bytes(content)
        else:
            batch = {b"data": cifar_rows(), b"labels": [3, 9]}
            (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    if binary:
        (folder / "batches.meta.txt").write_text("\n".join(classes))
    else:
        meta = pickle.dumps({"label_names": classes}, protocol=2)
        (folder / "batches.meta").write_bytes(meta)


def write_cifar_tar(folder: pathlib.Path) -> None:
    (folder / "unpacked").mkdir()
    write_cifar(folder / "unpacked")
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as tar:
        for path in sorted((folder / "unpacked").iterdir()):
            tar.add(path, f"cifar-10-batches-py/{path.name}")
            path.unlink()
    (folder / "unpacked").rmdir()


def write_clip(path: pathlib.Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = np.sin(np.arange(1600) / 5).astype(np.float32)
    soundfile.write(path, wave, 16_000, **options)


def write_esc50(folder: pathlib.Path) -> None:
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-1-A-0.wav,1,0,dog,True,1,A\n5-2-A-0.wav,5,10,rain,True,2,A\n"
    )
    for name in ("1-1-A-0.wav", "5-2-A-0.wav"):
        write_clip(folder / "audio" / name)


def write_urbansound(folder: pathlib.Path) -> None:
    (folder / "metadata").mkdir()
    (folder / "metadata" / "UrbanSound8K.csv").write_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
        "1-0-0-0.wav,1,0.0,0.1,1,1,0,air_conditioner\n"
        "2-0-0-0.wav,2,0.5,4.5,1,10,9,street_music\n"
    )
    write_clip(folder / "audio" / "fold1" / "1-0-0-0.wav")
    write_clip(folder / "audio" / "fold10" / "2-0-0-0.wav")


def write_crema_d(folder: pathlib.Path) -> None:
    (folder / "processedResults").mkdir()
    (folder / "processedResults" / "summaryTable.csv").write_text(
        "FileName,MultiModalVote\n1001_DFA_HAP_XX,H\n1050_DFA_SAD_XX,S\n"
    )
    for name in ("1001_DFA_HAP_XX", "1050_DFA_SAD_XX"):
        write_clip(folder / "AudioWAV" / f"{name}.wav")


def write_meld(folder: pathlib.Path) -> None:
    rows = {"train": "Joey,negative,0,1\nRoss,neutral,2,3", "dev": "Ross,positive,4,5"}
    for part, clips in (("train", "train_splits"), ("dev", "dev_splits_complete")):
        (folder / f"{part}_sent_emo.csv").write_text(
            f"Speaker,Sentiment,Dialogue_ID,Utterance_ID\n{rows[part]}\n"
        )
        for row in rows[part].split():
            _, _, dialogue, utterance = row.split(",")
            name = f"dia{dialogue}_utt{utterance}.wav"
            write_clip(folder / clips / "waves" / name)


IEMOCAP_TABLE = "Session{}/dialog/EmoEvaluation/Ses0{}F_impro01.txt"


def write_iemocap(folder: pathlib.Path) -> None:
    for session in (1, 2):
        dialog = f"Ses0{session}F_impro01"
        table = folder / IEMOCAP_TABLE.format(session, session)
        table.parent.mkdir(parents=True)
        table.write_text(
            f"% [times] turn emotion\n[0 - 1]\t{dialog}_F000\thap\t[2, 2, 2]\n"
        )
        wav = folder / f"Session{session}" / "sentences" / "wav" / dialog
        write_clip(wav / f"{dialog}_F000.wav")


def write_leaf(folder: pathlib.Path) -> None:
    handwriting.write_leaf(folder / "a.json", {"w": [1, 2], "v": [61, 0]})


def write_tff(folder: pathlib.Path) -> None:
    parts = {"all_train": {"w": [1, 2]}, "all_test": {"w": [61]}}
    handwriting.write_tff(folder / "emnist_all.sqlite", parts)


TABLE = [
    ("train/cat/a.png", "cat"),
    ("train/cat/b.png", "dog"),
    ("test/cat/a.png", "cat"),
    ("test/cat/b.png", "dog"),
]


def write_table_csv(folder: pathlib.Path) -> None:
    write_pictures(folder, "png")
    rows = [",".join(row) for row in TABLE]
    (folder / "x.csv").write_text("\n".join(["file_name,label", *rows]))


def write_table_lines(folder: pathlib.Path) -> None:
    write_pictures(folder, "png")
    rows = [{"file_name": name, "label": label} for name, label in TABLE]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))


def write_table_parquet(folder: pathlib.Path) -> None:
    write_pictures(folder, "png")
    rows = [{"file_name": name, "label": label} for name, label in TABLE]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / "x.parquet")


def read_table(ending: str, folder: pathlib.Path) -> None:
    read_source("picture_table", folder, table=f"x.{ending}", image_size=4)


def write_pictures(folder: pathlib.Path, ending: str) -> None:
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        (folder / part / "cat").mkdir(parents=True)
        for name in ("a", "b"):
            pixels = random.integers(0, 256, (9, 9, 3), np.uint8)
            path = folder / part / "cat" / f"{name}.{ending}"
            PIL.Image.fromarray(pixels).save(path)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_speakers(folder: pathlib.Path, form: str) -> None:
    content = npy(np.arange(6, dtype=np.float32).reshape(2, 3))
    if form == "npy":
        (folder / "x.npy").write_bytes(content)
    else:
        with zipfile.ZipFile(folder / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/x.npy", content)
            archive.writestr("a/y.npy", content)


def copy_reference(name: str, folder: pathlib.Path) -> None:
    (folder / name).write_bytes((REFERENCES / name).read_bytes())


def write_safetensors(folder: pathlib.Path) -> None:
    weights = {"a": np.ones(3, np.float32), "b": np.zeros((2, 2), np.float16)}
    hub.write_weights(folder / "w.safetensors", weights)


def write_index(folder: pathlib.Path) -> None:
    write_safetensors(folder)
    index = {"metadata": {}, "weight_map": {n: "w.safetensors" for n in "ab"}}
    (folder / "w.safetensors.index.json").write_text(json.dumps(index))


LISTS = {"cat": ["a cat", "two cats"], "dog": ["a dog"]}


def write_lists(folder: pathlib.Path, form: str) -> None:
    content = pickle.dumps(LISTS, 2) if form == "pkl" else json.dumps(LISTS).encode()
    (folder / f"lists.{form}").write_bytes(content)


def write_speech_network(folder: pathlib.Path) -> None:
    config = {"model_type": "hubert", "hidden_size": 12}
    config |= {"conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 2]}
    (folder / "config.json").write_text(json.dumps(config))
    heard = {"sampling_rate": 16_000, "do_normalize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(heard))


def write_config(kind: type, folder: pathlib.Path) -> None:
    (folder / "config.json").write_text(json.dumps(kind().to_json()))


def read_config(kind: type, folder: pathlib.Path) -> Any:
    path = folder / "config.json"
    return kind.from_json(hub.read_json(path), str(path))


def read_cifar(folder: pathlib.Path) -> None:
    source = sources.load("cifar10", str(folder))
    for part in (source.train, source.test):
        assert part.inputs.shape[1:] == (32, 32, 3)
        assert len(part.labels) == len(part.inputs)
        assert 0 <= part.labels.min() and part.labels.max() < 10
        assert len(part.class_names) == 10


def read_source(name: str, folder: pathlib.Path, **options: Any) -> None:
    source = sources.load(name, str(folder), **options)
    assert source.train.labels.max() < len(source.train.class_names)


CONFIGS = (
    *(CLIPTextConfig, UNetConfig, VAEConfig, T5Config, SpeechT5Config),
    *(HifiGanConfig, DPMSolver, DDIM),
)

PICTURES = functools.partial(read_source, "image_folder", image_size=4)
KITS = functools.partial(read_source, "drumkits", least_classes=1)
READERS = {
    "a CIFAR batch": (
        Reader("data_batch_2", write_cifar, read_cifar),
        of_binary,
    ),
    "a binary CIFAR batch": (
        Reader(
            "data_batch_2.bin", functools.partial(write_cifar, binary=True), read_cifar
        ),
        of_binary,
    ),
    "CIFAR's class names": (Reader("batches.meta", write_cifar, read_cifar), of_binary),
    "CIFAR's archive": (
        Reader("cifar-10-python.tar.gz", write_cifar_tar, read_cifar),
        of_binary,
    ),
    "ESC-50's table": (
        Reader("meta/esc50.csv", write_esc50, functools.partial(read_source, "esc50")),
        of_table,
    ),
    "UrbanSound8K's table": (
        Reader(
            "metadata/UrbanSound8K.csv",
            write_urbansound,
            functools.partial(read_source, "urbansound8k"),
        ),
        of_table,
    ),
    "CREMA-D's table": (
        Reader(
            "processedResults/summaryTable.csv",
            write_crema_d,
            functools.partial(read_source, "crema_d", labels="voted", test_fold=3),
        ),
        of_table,
    ),
    "a kit of Hydrogen": (
        Reader("drumkits/kit0/drumkit.xml", recordings.write_drumkits, KITS),
        of_binary,
    ),
    "MELD's table": (
        Reader(
            "train_sent_emo.csv",
            write_meld,
            functools.partial(read_source, "meld", test_list="dev", min_clips=1),
        ),
        of_table,
    ),
    "IEMOCAP's turns": (
        Reader(
            IEMOCAP_TABLE.format(2, 2),
            write_iemocap,
            functools.partial(read_source, "iemocap"),
        ),
        of_binary,
    ),
    "LEAF's FEMNIST": (
        Reader("a.json", write_leaf, functools.partial(read_source, "femnist")),
        functools.partial(of_binary, count=40),
    ),
    "TFF's FEMNIST": (
        Reader(
            "emnist_all.sqlite", write_tff, functools.partial(read_source, "femnist")
        ),
        functools.partial(of_binary, count=60),
    ),
    "a table of pictures": (
        Reader("x.csv", write_table_csv, functools.partial(read_table, "csv")),
        functools.partial(of_binary, count=6),
    ),
    "a table in lines of JSON": (
        Reader("x.jsonl", write_table_lines, functools.partial(read_table, "jsonl")),
        functools.partial(of_binary, count=6),
    ),
    "a table in Parquet": (
        Reader(
            "x.parquet", write_table_parquet, functools.partial(read_table, "parquet")
        ),
        functools.partial(of_binary, count=60),
    ),
    "a recording": (
        Reader(
            "audio/1-1-A-0.wav", write_esc50, functools.partial(read_source, "esc50")
        ),
        functools.partial(of_binary, count=4),
    ),
    "speaker vectors": (
        Reader("x.npy", functools.partial(write_speakers, form="npy"), read_speakers),
        of_binary,
    ),
    "an archive of speaker vectors": (
        Reader("x.zip", functools.partial(write_speakers, form="zip"), read_speakers),
        of_binary,
    ),
    "a prompt list": (
        Reader(
            "lists.pkl",
            functools.partial(write_lists, form="pkl"),
            lambda folder: prompting.read_prompt_lists(folder / "lists.pkl"),
        ),
        of_binary,
    ),
    "a prompt list in JSON": (
        Reader(
            "lists.json",
            functools.partial(write_lists, form="json"),
            lambda folder: prompting.read_prompt_lists(folder / "lists.json"),
        ),
        json_of,
    ),
    "a partition": (
        Reader(
            "clients.json",
            lambda folder: (folder / "clients.json").write_text(
                json.dumps({"0": [1, 3], "1": [0], "7": [2, 4]})
            ),
            lambda folder: partition.from_file(5, str(folder / "clients.json")),
        ),
        json_of,
    ),
    "safetensors": (
        Reader(
            "w.safetensors",
            write_safetensors,
            lambda folder: hub.read_weights(folder / "w.safetensors"),
        ),
        of_binary,
    ),
    "a speech network's config": (
        Reader(
            "config.json",
            write_speech_network,
            lambda folder: speech_models.shape.__wrapped__(str(folder)),
        ),
        json_of,
    ),
    "how a speech network hears": (
        Reader(
            "preprocessor_config.json",
            write_speech_network,
            lambda folder: speech_models.shape.__wrapped__(str(folder)),
        ),
        json_of,
    ),
    "an index of weights": (
        Reader(
            "w.safetensors.index.json",
            write_index,
            lambda folder: hub.read_weights(folder / "w.safetensors.index.json"),
        ),
        json_of,
    ),
}
for ending in ("png", "jpg", "webp", "bmp", "tiff", "ppm"):
    READERS[f"a picture, {ending}"] = (
        Reader(
            f"train/cat/a.{ending}",
            functools.partial(write_pictures, ending=ending),
            PICTURES,
        ),
        of_binary,
    )
for name in ("saved_by_torch.bin", "saved_by_old_torch.bin"):
    READERS[name] = (
        Reader(
            name,
            functools.partial(copy_reference, name),
            lambda folder, name=name: hub.read_weights(folder / name),
        ),
        of_binary,
    )
for kind in CONFIGS:
    READERS[kind.__name__] = (
        Reader(
            "config.json",
            functools.partial(write_config, kind),
            functools.partial(read_config, kind),
        ),
        json_of,
    )


@pytest.fixture
def time_limit() -> Iterator[None]:
    def stop(*_):
        pytest.fail("a reader hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(100)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# Of pictures, the kinds that people have in the fast tests.
RARE = [f"a picture, {ending}" for ending in ("bmp", "ppm", "tiff", "webp")]


# Pillow warns of some damage, which is meant to be there.
@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in RARE else ())
        for name in READERS
    ],
)
def test_damage_is_a_line_that_names_the_file(name, tmp_path, time_limit):
    reader, damaged = READERS[name]
    reader.prepare(tmp_path)
    path = tmp_path / reader.file
    reader.read(tmp_path)  # the file is a good one
    content, before = path.read_bytes(), peak_mb()
    refused = 0
    for what, changed in damaged(content):
        path.write_bytes(changed)
        try:
            reader.read(tmp_path)
        except UserError as error:
            refused += 1
            message = str(error)
            named = str(tmp_path) in message or message.startswith("config.data.")
            assert named, (what, message)
            assert message.isprintable() and len(message) < 800, (what, message)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert refused or name.startswith("a picture")
    assert peak_mb() - before < 500


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Pipes and names ---------------------------------------------------------------------


def read_wav(folder: pathlib.Path) -> None:
    audio.extract([audio.Clip(folder / "x.wav")], audio.FeatureSettings())


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("x.wav", read_wav),
        ("x.wav", lambda folder: audio.read(folder / "x.wav")),
        ("x.wav", lambda folder: audio.duration_s(folder / "x.wav")),
        ("x.npy", lambda folder: read_speakers(folder / "x.npy")),
        ("x.zip", lambda folder: read_speakers(folder / "x.zip")),
        ("x.pkl", lambda folder: prompting.read_prompt_lists(folder / "x.pkl")),
        ("config.json", lambda folder: hub.read_json(folder / "config.json")),
        ("x.bin", lambda folder: hub.read_weights(folder / "x.bin")),
        ("x.png", lambda folder: PICTURES(folder.parent)),
    ],
)
def test_named_pipes_are_not_waited_for(file, read, tmp_path, time_limit):
    folder = tmp_path / "class"
    folder.mkdir()
    os.mkfifo(folder / file)
    with pytest.raises(UserError, match="class"):
        read(folder)
