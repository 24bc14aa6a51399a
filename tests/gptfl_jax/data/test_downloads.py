import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from gptfl_jax.data import downloads, sources
from gptfl_jax.data.sources import fsdd as fsdd_source
from gptfl_jax.data.sources import speech_commands as speech_commands_source
from gptfl_jax.errors import UserError

from .conftest import SMALL, SPOKEN, check_rows


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory, speech_commands):
    """Serves the small data set as an archive, and gives its address and checksum."""
    folder = tmp_path_factory.mktemp("served")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        tar.add(speech_commands, arcname=".")
    with tarfile.open(folder / "evil.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))

    def handler(*args):
        return QuietHandler(*args, directory=folder)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def release(server, name="archive.tar.gz"):
    folder, address = server
    file = folder / name
    content = file.read_bytes() if file.exists() else b""
    return downloads.Release(
        f"{address}/{name}", "sha256", hashlib.sha256(content).hexdigest()
    )


def test_download(server, speech_commands, tmp_path, monkeypatch):
    monkeypatch.setattr(speech_commands_source, "_RELEASE", release(server))
    with pytest.raises(UserError, match="config.data.options.download=True"):
        sources.load("speech_commands", str(tmp_path))
    folder = tmp_path / "data"
    options = {"download": True, "features": SMALL}
    source = sources.load("speech_commands", str(folder), **options)
    check_rows(source.train, [speech_commands / name for name in SPOKEN["train"]])
    assert [path.name for path in folder.iterdir()] == ["speech_commands_v0.02"]
    # What is there is not downloaded again.
    monkeypatch.setattr(downloads, "download", None)
    again = sources.load("speech_commands", str(folder), **options)
    np.testing.assert_array_equal(again.train.inputs[0], source.train.inputs[0])


def test_download_whose_files_are_checked(server, fsdd, tmp_path, monkeypatch):
    """GitHub packs a repository on demand, so the checksum is of the recordings."""
    folder, _ = server
    with tarfile.open(folder / "fsdd.tar.gz", "w:gz") as tar:
        tar.add(fsdd, arcname="free-spoken-digit-dataset-master")
        tar.addfile(tarfile.TarInfo("free-spoken-digit-dataset-master/setup.py"))
    files = {"digest": "0" * 64, "files": "recordings/*.wav"}
    wanted = release(server, "fsdd.tar.gz")._replace(**files)
    monkeypatch.setattr(fsdd_source, "_RELEASE", wanted)
    with monkeypatch.context() as changed:
        changed.setattr(
            tarfile.TarFile, "extractall", lambda *_, **__: pytest.fail("unpacked")
        )
        with pytest.raises(UserError, match="sha256 of recordings/.*should be 0000"):
            sources.load("fsdd", str(tmp_path), download=True)
    assert not list(tmp_path.iterdir())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted((fsdd / "recordings").glob("*.wav"))
    ]
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    monkeypatch.setattr(fsdd_source, "_RELEASE", wanted._replace(digest=digest))
    got = sources.load("fsdd", str(tmp_path), download=True, test_speakers="bert")
    assert [path.name for path in tmp_path.iterdir()] == ["free-spoken-digit-dataset"]
    assert set(got.test.clients) == {"bert"}
    # What was not checked is not there.
    unpacked = tmp_path / "free-spoken-digit-dataset"
    assert [path.name for path in unpacked.iterdir()] == ["recordings"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("archive.tar.gz", {"digest": "0" * 64}, "and should be 0000"),
        ("gone.tar.gz", {}, r"cannot be downloaded to .* \(404"),
        ("evil.tar.gz", {}, "cannot be downloaded to .* outside"),
    ],
)
def test_bad_downloads_leave_nothing(server, tmp_path, name, changes, message):
    broken = release(server, name)._replace(**changes)
    with pytest.raises(UserError, match=message):
        downloads.download(broken, tmp_path / "inside" / "target")
    assert not list((tmp_path / "inside").iterdir())
    assert not (tmp_path / "outside.txt").exists()
