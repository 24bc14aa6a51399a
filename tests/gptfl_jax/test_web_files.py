import hashlib

import pytest

from gptfl_jax import web_files
from gptfl_jax.artifacts import WriteError
from gptfl_jax.errors import UserError

CONTENT = bytes(range(256)) * 40
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(web_files, "_FIRST_PAUSE_S", 0.0)


def ranges(server):
    return [request.range for request in server.requests]


def test_a_file_comes_once(web_server, tmp_path, capsys):
    web_server.files["/a.bin"] = CONTENT
    path = tmp_path / "new" / "a.bin"
    for _ in range(2):
        assert web_files.download(f"{web_server.url}/a.bin", path, DIGEST) == path
        assert path.read_bytes() == CONTENT
    assert ranges(web_server) == [""]
    said = capsys.readouterr().out
    assert f"downloading {web_server.url}/a.bin" in said and DIGEST in said
    assert {file.name for file in path.parent.iterdir()} <= {"a.bin", ".a.bin.lock"}


def test_a_connection_that_is_cut_goes_on(web_server, tmp_path):
    web_server.files["/a.bin"] = CONTENT
    web_server.tags["/a.bin"] = '"one"'
    web_server.cuts = [1000, 2000]
    path = web_files.download(f"{web_server.url}/a.bin", tmp_path / "a.bin")
    assert path.read_bytes() == CONTENT
    assert ranges(web_server) == ["", "bytes=1000-", "bytes=3000-"]


def test_a_later_start_goes_on(web_server, tmp_path):
    web_server.files["/a.bin"] = CONTENT
    web_server.tags["/a.bin"] = '"one"'
    web_server.cuts = [1000] + [0] * 4
    path = tmp_path / "a.bin"
    with pytest.raises(UserError, match=r"ended after 1,000 of 10,240.*start again"):
        web_files.download(f"{web_server.url}/a.bin", path)
    assert not path.exists()
    web_files.download(f"{web_server.url}/a.bin", path)
    assert path.read_bytes() == CONTENT
    assert ranges(web_server)[-1] == "bytes=1000-"


@pytest.mark.parametrize("sends_parts", [True, False])
def test_another_version_comes_from_its_beginning(web_server, tmp_path, sends_parts):
    web_server.files["/a.bin"] = b"x" * 5000
    web_server.tags["/a.bin"] = '"one"'
    web_server.cuts = [1000] + [0] * 4
    with pytest.raises(UserError):
        web_files.download(f"{web_server.url}/a.bin", tmp_path / "a.bin")
    web_server.files["/a.bin"] = CONTENT
    web_server.tags["/a.bin"] = '"two"' if sends_parts else '"one"'
    web_server.sends_parts = sends_parts
    path = web_files.download(f"{web_server.url}/a.bin", tmp_path / "a.bin")
    assert path.read_bytes() == CONTENT


def test_without_a_version_the_digest_tells_a_mixture(web_server, tmp_path):
    web_server.files["/a.bin"] = b"x" * 5000
    web_server.cuts = [1000] + [0] * 4
    url, path = f"{web_server.url}/a.bin", tmp_path / "a.bin"
    with pytest.raises(UserError):
        web_files.download(url, path, DIGEST[:8])
    web_server.files["/a.bin"] = CONTENT
    before = len(web_server.requests)
    web_files.download(url, path, DIGEST[:8])
    assert path.read_bytes() == CONTENT
    assert ranges(web_server)[before:] == ["bytes=1000-", ""]
    # Without a digest nothing would, so nothing is mixed.
    web_server.cuts = [1000]
    web_files.download(url, tmp_path / "b.bin")
    assert ranges(web_server)[-2:] == ["", ""]


def test_more_here_than_there(web_server, tmp_path):
    web_server.files["/a.bin"] = CONTENT
    (tmp_path / ".a.bin.part").write_bytes(CONTENT + b"!")
    path = web_files.download(f"{web_server.url}/a.bin", tmp_path / "a.bin", DIGEST)
    assert path.read_bytes() == CONTENT


def test_what_fails_says_why_and_what_to_do(web_server, tmp_path):
    web_server.files["/a.bin"] = CONTENT
    url, path = f"{web_server.url}/a.bin", tmp_path / "a.bin"
    with pytest.raises(web_files.DownloadFailed) as failed:
        web_files.download(f"{web_server.url}/b.bin", path)
    assert failed.value.reason == "404 Not Found"
    assert "/b.bin: cannot be downloaded (404 Not Found): check" in str(failed.value)
    assert len(web_server.requests) == 1
    with pytest.raises(UserError, match=f"{DIGEST} and should begin with 0000"):
        web_files.download(url, path, "0000")
    assert not path.exists() and not (tmp_path / ".a.bin.part").exists()
    web_server.files["/page.bin"] = b"<html>the link has expired</html>"
    web_server.types["/page.bin"] = "text/html; charset=utf-8"
    with pytest.raises(UserError, match="sends a page in its place.*in a browser"):
        web_files.download(f"{web_server.url}/page.bin", path)
    assert not path.exists()
    web_server.statuses = [503] * 5
    with pytest.raises(UserError, match="503 Service Unavailable.*start again, or"):
        web_files.download(url, path)
    web_server.statuses = [503, 429]  # these may pass
    assert web_files.download(url, path).read_bytes() == CONTENT
    web_server.close()
    with pytest.raises(UserError, match=r"cannot be downloaded \(.*refused"):
        web_files.download(url, tmp_path / "c.bin")


def test_a_file_stands_in_the_way(web_server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot write to .*/file"):
        web_files.download(f"{web_server.url}/a.bin", tmp_path / "file" / "a.bin")
