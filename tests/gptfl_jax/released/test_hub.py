import io
import json
import os
import pathlib
import pickle
import shutil
import struct
import zipfile

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub

REFERENCES = pathlib.Path(__file__).parents[2] / "references"


# Weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["saved_by_torch", "saved_by_old_torch"])
def test_files_of_torch_are_read(name):
    """Written by tests/references/torch_references.py: 0 to 11 in a 3x4 matrix."""
    weights = hub.read_weights(REFERENCES / f"{name}.bin")
    base = np.arange(12.0).reshape(3, 4)
    expected = {
        "float32": base,
        "transposed": base.T,
        "part": base[1:, ::2],
        "parameter": base,
        "scalar": np.float32(2.5),
        "empty": np.zeros((0, 3)),
        "bool": base > 5,
    }
    types = ("float64", "float16", "int64", "int32", "int16", "int8", "uint8")
    expected |= {kind: base.astype(kind) for kind in types}
    expected["bfloat16"] = base.astype(ml_dtypes.bfloat16)
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(weights[key], value)
        if key in (*types, "bfloat16", "float32", "bool"):
            assert weights[key].dtype == value.astype(key).dtype


def test_weights_are_read_when_asked_for(tmp_path):
    weights = {name: np.arange(6.0).reshape(2, 3) + i for i, name in enumerate("abc")}
    hub.write_weights(tmp_path / "1.safetensors", {n: weights[n] for n in "ab"})
    hub.write_weights(tmp_path / "2.safetensors", {"c": weights["c"]})
    index = tmp_path / "model.safetensors.index.json"
    shards = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    for path in (tmp_path / "1.safetensors", index):
        opened, read = hub.open_weights(path), hub.read_weights(path)
        assert list(opened) == sorted(read) and len(opened) == len(read)
        for name, value in opened.items():
            np.testing.assert_array_equal(value, weights[name])
            np.testing.assert_array_equal(read[name], weights[name])
    opened = hub.open_weights(index)
    hub.write_weights(tmp_path / "2.safetensors", {"c": np.ones(3)})
    np.testing.assert_array_equal(opened["c"], np.ones(3))
    hub.write_weights(tmp_path / "2.safetensors", {"d": np.ones(3)})
    with pytest.raises(hub.BadWeights, match="2.safetensors: damaged"):
        opened["c"]
    with pytest.raises(hub.BadWeights, match="do not hold c"):
        hub.open_weights(index)
    (tmp_path / "1.safetensors").write_bytes(b"no weights")
    with pytest.raises(hub.BadWeights, match="1.safetensors: damaged"):
        hub.open_weights(tmp_path / "1.safetensors")
    # Of the other formats nothing is gained: they are read at once.
    torch_file = REFERENCES / "saved_by_torch.bin"
    assert set(hub.open_weights(torch_file)) == set(hub.read_weights(torch_file))


class Attack:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def torch_zip(path, content: bytes, storages=()):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


@pytest.mark.parametrize("form", ["zip", "old"])
def test_a_forbidden_global_is_refused_and_not_run(form, tmp_path):
    target = tmp_path / "made_by_attack"
    content = pickle.dumps({"a": Attack(target)})
    path = tmp_path / "weights.bin"
    if form == "zip":
        torch_zip(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(hub.BadWeights, match=r"weights.bin: refused: it names") as info:
        hub.read_weights(path)
    assert "safetensors" in str(info.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "module, name",
    [
        ("builtins", "eval"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_wrapper_subclass"),
        ("collections", "Counter"),
        ("numpy", "dtype"),
    ],
)
def test_only_what_weights_need_may_be_named(module, name, tmp_path):
    content = f"c{module}\n{name}\n.".encode()
    with pytest.raises(hub.BadWeights, match=f"it names {module}.{name}"):
        hub.read_weights(torch_zip(tmp_path / "x.bin", content))


class Raw:
    """Pickles as a call of a named function, without importing it."""

    def __init__(self, call):
        self.call = call


class TorchPickler(pickle._Pickler):
    """Writes `Storage` and `Raw` objects the way torch.save does."""

    def persistent_id(self, item):
        return item.pid if isinstance(item, Storage) else None

    def save(self, item, save_persistent_id=True):
        if isinstance(item, Raw):
            module, name, arguments = item.call
            self.write(f"c{module}\n{name}\n".encode())
            if arguments is not None:
                self.save(arguments)
                self.write(pickle.REDUCE)
        else:
            super().save(item, save_persistent_id)


class Storage:
    def __init__(self, size, key="0", kind="FloatStorage", tag="storage"):
        self.pid = (tag, Raw(("torch", kind, None)), key, "cpu", size)


def tensor_file(path, storage, offset, shape, strides, data=bytes(16)):
    arguments = (storage, offset, shape, strides, False, None)
    file = io.BytesIO()
    TorchPickler(file, protocol=2).dump(
        {"w": Raw(("torch._utils", "_rebuild_tensor_v2", arguments))}
    )
    return torch_zip(path, file.getvalue(), {"0": data})


def test_a_tensor_built_by_hand(tmp_path):
    data = np.arange(4, dtype=np.float32).tobytes()
    path = tensor_file(tmp_path / "x.bin", Storage(4), 1, (3,), (1,), data)
    np.testing.assert_array_equal(hub.read_weights(path)["w"], [1, 2, 3])


@pytest.mark.parametrize(
    "storage, offset, shape, strides, reason",
    [
        (Storage(4), 2, (3,), (1,), "reaches beyond its data"),
        (Storage(4), 0, (2, 2), (4, 1), "reaches beyond its data"),
        (Storage(4), 0, (5,), (0,), "reaches beyond its data"),
        (Storage(4), 0, (2**40, 2**40), (0, 0), "reaches beyond its data"),
        (Storage(4), -1, (2,), (1,), "impossible form"),
        (Storage(4), 0, (2,), (-1,), "impossible form"),
        (Storage(4), 0, (2, 2), (1,), "impossible form"),
        (3, 0, (2,), (1,), "impossible form"),
        (Storage(5), 0, (2,), (1,), "storage of the wrong size"),
        (Storage(4, key="../../x"), 0, (2,), (1,), "no item named"),
        (Storage(4, tag="module"), 0, (2,), (1,), "storage of unknown kind"),
    ],
)
def test_impossible_tensors_are_refused(
    storage, offset, shape, strides, reason, tmp_path
):
    path = tensor_file(tmp_path / "x.bin", storage, offset, shape, strides)
    with pytest.raises(hub.BadWeights, match=rf"x.bin: damaged or .*{reason}"):
        hub.read_weights(path)


def old_file(path, storages, keys, data, little=True):
    """A file of torch before 1.6 with a tensor of each storage's first number."""
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": little}]
    tensors = {
        str(number): Raw(
            ("torch._utils", "_rebuild_tensor_v2", (storage, 0, (1,), (1,)))
        )
        for number, storage in enumerate(storages)
    }
    file = io.BytesIO()
    for part in (*parts, tensors, keys):
        TorchPickler(file, protocol=2).dump(part)
    path.write_bytes(file.getvalue() + data)
    return path


NUMBERS = struct.pack("<q4f", 4, 1, 2, 3, 4)


def test_an_old_file_built_by_hand(tmp_path):
    path = old_file(tmp_path / "x.bin", [Storage(4)], ["0"], NUMBERS)
    np.testing.assert_array_equal(hub.read_weights(path)["0"], [1])


@pytest.mark.parametrize(
    "storages, keys, data, reason",
    [
        # Left as they were, these became whatever the memory held.
        ([Storage(4)], [], b"", "does not hold the storages"),
        ([Storage(4), Storage(4, "1")], ["0"], NUMBERS, "does not hold the storages"),
        ([Storage(4)], ["0", "0"], 2 * NUMBERS, "does not hold the storages"),
        ([Storage(4)], ["1"], NUMBERS, "does not hold the storages"),
        # One number would have been repeated.
        ([Storage(4)], ["0"], NUMBERS[:12], "storage of the wrong size"),
        ([Storage(4)], ["0"], struct.pack("<q4f", 3, 1, 2, 3, 4), "of the wrong size"),
        ([Storage(4), Storage(5)], ["0"], NUMBERS, "storage of the wrong size"),
        ([Storage(4), Storage(4, kind="IntStorage")], ["0"], NUMBERS, "wrong size"),
        ([Storage(2**40)], ["0"], NUMBERS, "storages are larger than the file"),
        ([Storage(4)], {"0": 0}, NUMBERS[:5], "unpack requires a buffer of 8 bytes"),
    ],
)
def test_old_files_with_storages_that_do_not_fit_are_refused(
    storages, keys, data, reason, tmp_path
):
    path = old_file(tmp_path / "x.bin", storages, keys, data)
    with pytest.raises(hub.BadWeights, match=rf"x.bin: damaged or .*{reason}"):
        hub.read_weights(path)


def test_a_compressed_file_that_unpacks_to_more_is_refused(tmp_path):
    path = tensor_file(tmp_path / "x.bin", Storage(4), 0, (4,), (1,))
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(2**20))
    with pytest.raises(hub.BadWeights, match="its parts are larger than the whole"):
        hub.read_weights(path)


def test_truncated_files_are_refused(tmp_path):
    hub.write_weights(tmp_path / "a.safetensors", {"w": np.ones(100, np.float32)})
    for file in (
        tmp_path / "a.safetensors",
        REFERENCES / "saved_by_torch.bin",
        REFERENCES / "saved_by_old_torch.bin",
    ):
        data = file.read_bytes()
        for size in (0, 5, len(data) // 2, len(data) - 3):
            path = tmp_path / f"part{file.suffix}"
            path.write_bytes(data[:size])
            with pytest.raises(hub.BadWeights, match=f"{path.name}: damaged"):
                hub.read_weights(path)


def test_other_files_are_no_weights(tmp_path):
    path = torch_zip(tmp_path / "list.bin", pickle.dumps([1, 2]))
    with pytest.raises(hub.BadWeights, match=r"list.bin: holds no weights by name"):
        hub.read_weights(path)
    with pytest.raises(hub.BadWeights, match=r"none.safetensors: missing"):
        hub.read_weights(tmp_path / "none.safetensors")


def test_safetensors_survive_a_round_trip(tmp_path):
    weights = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": np.ones(2, ml_dtypes.bfloat16),
        "c": np.float16([1.5]),
    }
    path = tmp_path / "new" / "w.safetensors"
    hub.write_weights(path, weights)
    read = hub.read_weights(path)
    assert read.keys() == weights.keys()
    for name, value in weights.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def sharded(folder, shards, index=None):
    for name, weights in shards.items():
        hub.write_weights(folder / name, weights)
    index = index or {w: file for file, ws in shards.items() for w in ws}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def test_sharded_weights_are_joined(tmp_path):
    one, two = np.ones(1, np.float32), np.zeros(2, np.float32)
    path = sharded(tmp_path, {"1.safetensors": {"a": one}, "2.safetensors": {"b": two}})
    weights = hub.read_weights(path)
    np.testing.assert_array_equal(weights["a"], one)
    np.testing.assert_array_equal(weights["b"], two)


@pytest.mark.parametrize(
    "index, message",
    [
        ({"a": "1.safetensors", "b": "2.safetensors"}, "2.safetensors: missing"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, "do not hold b"),
        ({"a": "../1.safetensors"}, "not the name of a file beside it"),
        ({"a": "/etc/passwd"}, "not the name of a file beside it"),
        ({"a": 3}, "not the name of a file beside it"),
        ({"a": ["1"]}, "not the name of a file beside it"),
        ({"a": "model.safetensors.index.json"}, "beside it with weights"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(index, message, tmp_path):
    path = sharded(tmp_path, {"1.safetensors": {"a": np.ones(1, np.float32)}}, index)
    with pytest.raises(hub.BadWeights, match=message):
        hub.read_weights(path)


def test_the_best_form_of_weights_is_found(tmp_path):
    stem = tmp_path / "model"
    assert hub.find_weights(stem) is None
    for name in (
        "model.fp16.bin",
        "model.fp16.safetensors",
        "model.bin.index.json",
        "model.bin",
        "model.safetensors.index.json",
        "model.safetensors",
    ):
        (tmp_path / name).touch()
        assert hub.find_weights(stem) == tmp_path / name


@pytest.mark.parametrize(
    "text",
    ["{", "[1]", "\xff", "[" * 10**5, '{"a": ' * 10**5, f'{{"a": {"9" * 5000}}}'],
)
def test_files_that_are_no_json_objects_are_refused(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin1"))
    with pytest.raises(hub.BadWeights, match=r"config.json: not"):
        hub.read_json(tmp_path / "config.json")
    with pytest.raises(hub.BadWeights, match=r"x.json: missing"):
        hub.read_json(tmp_path / "x.json")


def test_code_of_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "x.C"}}')
    with pytest.raises(hub.BadWeights, match=r"config.json: auto_map .* never run"):
        hub.read_json(tmp_path / "config.json")


# Folders and repositories -----------------------------------------------------------


def test_a_local_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets" / "owner").mkdir(parents=True)
    (tmp_path / "owner" / "model").mkdir(parents=True)
    assert hub.snapshot("owner/model", ["*"]) == pathlib.Path("owner/model")
    assert hub.snapshot("owner", ["*"]) == pathlib.Path("owner")
    monkeypatch.chdir(tmp_path / "owner")
    assert hub.snapshot("owner", ["*"]) == tmp_path / "assets" / "owner"


def test_only_the_patterns_are_downloaded(monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return "/cache/x"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert hub.snapshot("owner/model", ["a/*", "b"], "main") == pathlib.Path("/cache/x")
    assert asked == {
        "name": "owner/model",
        "revision": "main",
        "allow_patterns": ["a/*", "b"],
        "repo_type": "model",
    }


@pytest.fixture
def offline_cache(tmp_path, monkeypatch):
    """An empty cache, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_offline_the_cache_is_used(offline_cache):
    commit = "0" * 40
    repository = offline_cache / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    assert hub.snapshot("owner/model", ["model_index.json"]) == folder


def test_offline_without_cache_says_what_to_do(offline_cache):
    with pytest.raises(hub.ModelNotFound, match=r"owner/other: .*name a local folder"):
        hub.snapshot("owner/other", ["*"])


@pytest.mark.parametrize("name", ["/no/such/folder", "./x", "a/b/c", "~/x/y", "a b"])
def test_what_cannot_be_a_repository_is_a_missing_folder(name):
    with pytest.raises(hub.ModelNotFound, match="there is no such folder"):
        hub.snapshot(name, ["*"])


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(hub.ModelNotFound, match="there is no such folder"):
        hub.snapshot("model.ckpt", ["*"])


@pytest.mark.parametrize(
    "error, message",
    [
        (errors.RepositoryNotFoundError, "neither a folder, a shipped asset nor"),
        (errors.GatedRepoError, "accept its licence"),
        (errors.HfHubHTTPError, "cannot be downloaded"),
        (OSError, "cannot be downloaded"),
    ],
)
def test_failed_downloads_are_explained(error, message, monkeypatch):
    def snapshot_download(*_, **__):
        failure = error.__new__(error)
        failure.args = ("reason\nmore",)
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(hub.ModelNotFound, match=f"owner/model: .*{message}") as info:
        hub.snapshot("owner/model", ["*"])
    assert "\n" not in str(info.value)


# Tokenizers -------------------------------------------------------------------------

TEMPLATE = {"type": "TemplateProcessing", "pair": [], "special_tokens": {}}


def tokenizer_of_glyphs(folder, change):
    """A copy of the glyphs' tokenizer whose tokenizer.json is changed."""
    shutil.copytree(hub.ASSETS / "glyphs" / "tokenizer", folder)
    file = folder / "tokenizer.json"
    file.write_bytes(change(file.read_bytes()))
    return hub.load_tokenizer(folder, "PreTrainedTokenizerFast", "model_index.json")


def with_part(name, value):
    return lambda content: json.dumps(json.loads(content) | {name: value}).encode()


def test_a_tokenizer_is_loaded(tmp_path):
    loaded = tokenizer_of_glyphs(tmp_path / "tokenizer", lambda content: content)
    assert len(set(loaded("three").input_ids)) > 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda content: content[: len(content) // 2], id="cut"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"\xff\xfe" * 50, id="no text"),
        pytest.param(lambda content: b"[]", id="a list"),
        pytest.param(lambda content: b"{}", id="nothing in it"),
        pytest.param(with_part("model", None), id="no model"),
        pytest.param(with_part("added_tokens", [{"id": 1}]), id="a token without text"),
        # On these two the reader panics, when it loads and when it is used.
        pytest.param(
            with_part(
                "normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
            ),
            id="a map of characters that is none",
        ),
        pytest.param(
            with_part(
                "post_processor",
                TEMPLATE | {"single": [{"SpecialToken": {"id": "X", "type_id": 0}}]},
            ),
            id="a token that is not there",
        ),
    ],
)
def test_a_damaged_tokenizer_is_named_in_one_line(change, tmp_path):
    with pytest.raises(UserError) as refused:
        tokenizer_of_glyphs(tmp_path / "tokenizer", change)
    file = tmp_path / "tokenizer" / "tokenizer.json"
    assert str(refused.value).startswith(f"{file}: its tokenizer is damaged (")
    assert str(refused.value).endswith("): download the model again")
    assert "\n" not in str(refused.value)


def test_damage_to_other_files_of_a_tokenizer_names_the_folder(tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(hub.ASSETS / "glyphs" / "tokenizer", folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text("[1]")
    (folder / "merges.txt").write_text("")
    with pytest.raises(UserError, match="/tokenizer: its tokenizer is damaged"):
        hub.load_tokenizer(folder, "CLIPTokenizer")


def test_a_program_that_is_stopped_while_it_loads_stops(tmp_path):
    with pytest.raises(KeyboardInterrupt), hub.damage_to_tokenizer(tmp_path):
        raise KeyboardInterrupt
