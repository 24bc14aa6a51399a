import io
import zipfile

import huggingface_hub
import numpy as np
import pytest

from gptfl_jax.errors import UserError
from gptfl_jax.generators.speech.speakers import read_speakers

NAMES = ("cmu_us_awb_arctic-wav-arctic_a0001", "cmu_us_bdl_arctic-wav-arctic_a0002")


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def vector(number):
    return np.random.default_rng(number).normal(size=4).astype(np.float32)


def archive(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


@pytest.fixture
def released(tmp_path):
    """As the repository has it: one archive, whose order is not that of the names."""
    folder = tmp_path / "repository"
    folder.mkdir()
    members = {
        f"spkrec-xvect/{NAMES[1]}.npy": npy(vector(1)),
        "../outside.txt": b"never written",
        f"__MACOSX/spkrec-xvect/._{NAMES[0]}.npy": b"not an array",
        f"spkrec-xvect/{NAMES[0]}.npy": npy(vector(0)),
    }
    archive(folder / "spkrec-xvect.zip", members)
    (folder / "README.md").write_text("words")
    return folder


def assert_released(speakers):
    assert speakers.names == NAMES
    np.testing.assert_array_equal(speakers.vectors, [vector(0), vector(1)])


def test_archives_folders_and_repositories(released, tmp_path, monkeypatch):
    before = sorted(tmp_path.rglob("*"))
    assert_released(read_speakers(released / "spkrec-xvect.zip"))
    assert_released(read_speakers(released))
    assert sorted(tmp_path.rglob("*")) == before  # nothing is extracted
    asked = {}

    def snapshot_download(name, **options):
        asked.update(options, name=name)
        return str(released)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_released(read_speakers("Matthijs/cmu-arctic-xvectors"))
    assert asked["name"] == "Matthijs/cmu-arctic-xvectors"
    assert asked["repo_type"] == "dataset"
    assert asked["allow_patterns"] == ["*.zip", "*.npy"]


def test_files_and_matrices(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.npy").write_bytes(npy(vector(1)[None]))
    double = np.stack([vector(2), vector(3)]).astype(np.float64)
    (tmp_path / "two.npy").write_bytes(npy(double))
    speakers = read_speakers(tmp_path)
    assert speakers.names == ("one", "two[0]", "two[1]")
    assert speakers.vectors.dtype == np.float32
    np.testing.assert_array_equal(speakers.vectors, list(map(vector, (1, 2, 3))))
    one = read_speakers(tmp_path / "b" / "one.npy")
    assert one.names == ("one",) and one.vectors.shape == (1, 4)


def test_what_holds_no_vectors_is_refused(tmp_path):
    executed = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (executed.mkdir, ())

    header_of_a_terabyte = npy(np.zeros(4, np.float32)).replace(
        b"(4,), }        ", b"(250000000000,)}"
    )
    for content, message in (
        (npy(np.array([Payload()], object)), "it holds object, not plain numbers"),
        (npy(np.array(["a"])), "it holds <U1"),
        (npy(np.zeros((2, 2, 2), np.float32)), r"of shape \(2, 2, 2\)"),
        (npy(np.zeros(0, np.float32)), r"of shape \(0,\)"),
        (npy(np.array([1.0, np.nan])), "not finite"),
        (npy(vector(0))[:-3], "no file of speaker vectors"),
        (header_of_a_terabyte, "no file of speaker vectors"),
        (b"", "no file of speaker vectors"),
    ):
        (tmp_path / "x.npy").write_bytes(content)
        with pytest.raises(UserError, match=rf"x\.npy: .*{message}"):
            read_speakers(tmp_path / "x.npy")
        archived = archive(tmp_path / "x.zip", {"a/x.npy": content})
        with pytest.raises(UserError, match=rf"x\.zip: a/x\.npy: .*{message}"):
            read_speakers(archived)
    assert not executed.exists()
    (tmp_path / "x.npy").unlink()
    (tmp_path / "x.zip").write_bytes(archived.read_bytes()[:60])
    with pytest.raises(UserError, match="x.zip: damaged"):
        read_speakers(tmp_path / "x.zip")
    archive(tmp_path / "x.zip", {"readme": b"x"})
    with pytest.raises(UserError, match="x.zip holds no .npy file"):
        read_speakers(tmp_path)
    archive(tmp_path / "y.zip", {})
    with pytest.raises(UserError, match="holds several .zip files"):
        read_speakers(tmp_path)
    sizes = {"a.npy": npy(vector(0)), "b.npy": npy(vector(0)[:3])}
    archive(tmp_path / "x.zip", sizes)
    with pytest.raises(UserError, match=r"b\.npy holds vectors of 3 numbers, the"):
        read_speakers(tmp_path / "x.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no .npy or .zip file"):
        read_speakers(tmp_path / "empty")
