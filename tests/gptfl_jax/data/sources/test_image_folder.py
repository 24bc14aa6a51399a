import os

import numpy as np
import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError

from ..conftest import save_picture


def test_image_folder_crops_resizes_and_reports(tmp_path, capsys):
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                wide = np.full((4, 8, 3), 50 * label + i)
                wide[:, :2] = wide[:, 6:] = 255  # outside the middle square
                save_picture(tmp_path / part / name / f"{i}.png", wide)
    (tmp_path / "train/cat/broken.jpg").write_bytes(b"not a picture")
    (tmp_path / "train/cat/notes.txt").write_text("ignored")
    source = sources.load("image_folder", str(tmp_path), image_size=2)
    assert source.train.inputs.shape == (6, 2, 2, 3)
    values = source.train.inputs[:, 0, 0, 0].tolist()
    assert values == [0, 1, 2, 50, 51, 52]
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    out = capsys.readouterr().out
    assert "6 real pictures loaded; 2 left out" in out
    assert "broken.jpg: cannot be decoded" in out
    assert "notes.txt: takes pictures in files that end in .bmp, .jpeg" in out

    flat = sources.load("image_folder", str(tmp_path / "train"), test_fraction=0.34)
    assert len(flat.train.labels) == 4 and sorted(flat.test.labels) == [0, 1]
    assert flat.train.inputs.shape == (4, 4, 4, 3)
    grey = sources.load(
        "image_folder", str(tmp_path), image_size=2, channels=1, classes=("dog", "cat")
    )
    assert grey.train.inputs[:, 0, 0, 0].tolist() == [50, 51, 52, 0, 1, 2]
    save_picture(tmp_path / "train/cat/large.png", np.zeros((9, 9, 3)))
    with pytest.raises(UserError, match="set config.data.image_size"):
        sources.load("image_folder", str(tmp_path))
    with pytest.raises(UserError, match="bird: no such class folder"):
        sources.load("image_folder", str(tmp_path), classes=("bird",))
    with pytest.raises(UserError, match="no such folder"):
        sources.load("image_folder", str(tmp_path / "none"))


def picture_folders(root, **counts):
    for name, count in counts.items():
        (root / name).mkdir(exist_ok=True)
        for i in range(count):
            save_picture(root / name / f"{i}.png", np.full((4, 4, 3), i))


def test_what_systems_leave_among_pictures_is_no_class(tmp_path, capsys):
    picture_folders(tmp_path, cat=3, dog=3, __MACOSX=2)
    for name in (".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        save_picture(tmp_path / name / "0.png", np.zeros((4, 4, 3)))
    (tmp_path / "dog/moving.gif").write_bytes(b"GIF89a")
    source = sources.load("image_folder", str(tmp_path))
    assert source.train.class_names == ("cat", "dog")
    assert len(source.train.labels) + len(source.test.labels) == 6
    out = capsys.readouterr().out
    assert "6 real pictures loaded; 1 left out" in out and "moving.gif: takes" in out
    assert sources.class_names("image_folder", str(tmp_path)) == ("cat", "dog")


def test_a_class_without_pictures_is_refused(tmp_path):
    picture_folders(tmp_path, cat=3, dog=0)
    message = r"dog: no picture that can be read; remove the folder, or name the"
    with pytest.raises(UserError, match=message):
        sources.load("image_folder", str(tmp_path))
    (tmp_path / "dog/0.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=message):
        sources.load("image_folder", str(tmp_path))
    chosen = sources.load("image_folder", str(tmp_path), classes=("cat",))
    assert chosen.train.class_names == ("cat",)


def test_one_picture_leaves_none_to_test_on(tmp_path):
    picture_folders(tmp_path, cat=1)
    with pytest.raises(UserError, match="a picture a class leaves none to test on"):
        sources.load("image_folder", str(tmp_path))


def test_class_names_are_known_without_the_pictures(tmp_path):
    picture_folders(tmp_path, owl=1, **{"red fox": 0})
    (tmp_path / "owl/broken.png").write_bytes(b"not a picture")
    names = sources.class_names("image_folder", str(tmp_path))
    assert names == ("owl", "red fox")
    assert sources.class_names("sklearn_digits", blocks=5) == tuple("0123456789")
    (tmp_path / "a\x1b[31m").mkdir()
    with pytest.raises(UserError, match=r"class name 'a\\x1b\[31m': takes words"):
        sources.class_names("image_folder", str(tmp_path))


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path, capsys):
    for name in ("a", "b"):
        save_picture(tmp_path / "cat" / f"{name}.png", np.zeros((4, 4, 3)))
    broken = os.fsencode(tmp_path / "cat") + b"/\xff\x1b[31m.png"
    with open(broken, "wb") as file:
        file.write(b"no picture")
    assert len(sources.load("image_folder", str(tmp_path)).train.labels) == 1
    assert r"cat/\udcff\x1b[31m.png: cannot be decoded" in capsys.readouterr().out
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(UserError, match=r"class name .\\udcff.: takes words in UTF-8"):
        sources.load("image_folder", str(tmp_path))
