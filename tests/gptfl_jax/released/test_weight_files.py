import hashlib
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from gptfl_jax.errors import UserError
from gptfl_jax.released import hub, weight_files

CONTENT = b"weights" * 100
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def test_an_address_is_downloaded_once(web_server, cache):
    web_server.files["/some/w.pth"] = CONTENT
    url = f"{web_server.url}/some/w.pth"
    found = weight_files.find(url)
    assert found.read_bytes() == CONTENT
    assert found.name == "w.pth" and found.parents[1] == cache
    assert weight_files.find(url) == found
    assert len(web_server.requests) == 1
    # With a digest it is another file, until that is known to be the right one.
    checked = weight_files.find(f"{url}#sha256={DIGEST[:8].upper()}")
    assert checked != found and checked.read_bytes() == CONTENT
    with pytest.raises(UserError, match=f"{DIGEST} and should begin with 01"):
        weight_files.find(f"{url}#sha256=01234567")


def test_names_of_torchvision_hold_the_digest(web_server, monkeypatch):
    monkeypatch.setattr(weight_files, "_NAMED_BY_DIGEST", "127.0.0.1")
    right, wrong = f"/resnet18-{DIGEST[:8]}.pth", "/resnet18-f37072fd.pth"
    web_server.files = {right: CONTENT, wrong: CONTENT}
    assert weight_files.find(web_server.url + right).read_bytes() == CONTENT
    with pytest.raises(UserError, match="should begin with f37072fd"):
        weight_files.find(web_server.url + wrong)
    # Elsewhere digits may be a date.
    monkeypatch.setattr(weight_files, "_NAMED_BY_DIGEST", "download.pytorch.org")
    assert weight_files.find(web_server.url + wrong).read_bytes() == CONTENT


def test_a_file_of_a_repository(tmp_path, monkeypatch):
    asked = []

    def snapshot(repository, patterns, revision):
        asked.append((repository, patterns, revision))
        return tmp_path

    monkeypatch.setattr(hub, "snapshot", snapshot)
    (tmp_path / "model.safetensors").touch()
    found = weight_files.find("timm/resnet18.tv_in1k:model.safetensors")
    assert found == tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="timm/resnet18 has no such file"):
        weight_files.find("timm/resnet18@v1.0:a/b.bin")
    assert asked == [
        ("timm/resnet18.tv_in1k", ["model.safetensors"], None),
        ("timm/resnet18", ["a/b.bin"], "v1.0"),
    ]


def test_paths(tmp_path, monkeypatch):
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(1)}, file)
    assert weight_files.find(file) == weight_files.find(tmp_path) == file
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weight_files.find("~/model.safetensors") == file
    # A file that is here is no repository.
    monkeypatch.chdir(tmp_path)
    pathlib.Path("own").mkdir()
    pathlib.Path("own/name:a.bin").touch()
    assert weight_files.find("own/name:a.bin") == pathlib.Path("own/name:a.bin")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("none.pth", r"none\.pth: there is no such file of weights; takes a file"),
        ("https://host/", "is not the address of a file"),
        ("https://host/..", "is not the address of a file"),
        ("https://host/a.pth#sha256=12", "8 or more of the digits"),
        ("https://host/a.pth#part", "stands sha256="),
    ],
)
def test_what_is_no_file_of_weights(reference, message):
    with pytest.raises(UserError, match=message):
        weight_files.find(reference)
