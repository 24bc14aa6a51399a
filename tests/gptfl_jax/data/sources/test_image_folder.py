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
    with pytest.raises(UserError, match="cat holds no class folders: config.data.fol"):
        sources.load("image_folder", str(tmp_path / "train" / "cat"))


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


def test_copies_of_a_picture_are_on_one_side_of_the_split(tmp_path):
    picture_folders(tmp_path, cat=10)
    for i in range(10):
        save_picture(tmp_path / "cat" / f"copy of {i}.bmp", np.full((4, 4, 3), i))
        save_picture(tmp_path / "dog" / f"{i}.png", np.full((4, 4, 3), 100 + i))
    save_picture(tmp_path / "dog/a cat.png", np.full((4, 4, 3), 7))  # labelled wrongly
    for seed in range(4):
        source = sources.load("image_folder", str(tmp_path), split_seed=seed)
        greys = [
            set(part.inputs[:, 0, 0, 0].tolist())
            for part in (source.train, source.test)
        ]
        assert not greys[0] & greys[1]
        assert sum(grey < 100 for grey in greys[1]) == 2  # of ten that differ
        assert sum(grey >= 100 for grey in greys[1]) == 2


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
    for value, name in enumerate(("a", "b")):
        save_picture(tmp_path / "cat" / f"{name}.png", np.full((4, 4, 3), value))
    broken = os.fsencode(tmp_path / "cat") + b"/\xff\x1b[31m.png"
    with open(broken, "wb") as file:
        file.write(b"no picture")
    assert len(sources.load("image_folder", str(tmp_path)).train.labels) == 1
    assert r"cat/\udcff\x1b[31m.png: cannot be decoded" in capsys.readouterr().out
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(UserError, match=r"class name .\\udcff.: takes words in UTF-8"):
        sources.load("image_folder", str(tmp_path))


def radiographs(root):
    """Like COVID-19 Radiography: every picture has a mask beside it."""
    for label, name in enumerate(
        ("COVID", "Lung_Opacity", "Normal", "viral-pneumonia")
    ):
        for part, value in (("images", 10 * label), ("masks", 255)):
            for i in range(2):
                pixels = np.full((4, 4, 3), value + i * (part == "images"))
                save_picture(root / name / part / f"{name}-{i}.png", pixels)
    (root / "COVID/masks/notes.txt").write_text("ignored")


def test_patterns_choose_among_the_pictures(tmp_path, capsys):
    radiographs(tmp_path)
    for options in ({"include": ("*/images/*",)}, {"exclude": ("*/masks/*",)}):
        source = sources.load("image_folder", str(tmp_path), **options)
        parts = source.train.inputs, source.test.inputs
        values = np.concatenate(parts)[:, 0, 0, 0].tolist()
        assert sorted(values) == [0, 1, 10, 11, 20, 21, 30, 31]
        assert "left out" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no picture that can be read"):
        sources.load("image_folder", str(tmp_path), include=("*/Images/*",))


def test_a_known_label_set_names_and_orders_the_classes(tmp_path):
    radiographs(tmp_path)
    options = {"labels": "covid_radiography", "exclude": ("*/masks/*",)}
    source = sources.load("image_folder", str(tmp_path), **options)
    assert source.train.class_names == ("NORMAL", "Viral Pneumonia", "COVID")
    by_label = source.train.inputs[:, 0, 0, 0] // 10
    assert by_label.tolist() == [2, 3, 0] and source.train.labels.tolist() == [0, 1, 2]
    names = sources.class_names("image_folder", str(tmp_path), **options)
    assert names == source.train.class_names
    assert sources.known_labels("image_folder", **options) == "covid_radiography"
    assert sources.known_labels("image_folder") == "image_folder"
    assert sources.known_labels("eurosat") == "eurosat"

    few = sources.load("image_folder", str(tmp_path), **options, classes=("COVID",))
    assert few.train.class_names == ("COVID",)
    with pytest.raises(UserError, match="covid_radiography has no Lung_Opacity"):
        sources.load(
            "image_folder", str(tmp_path), **options, classes=("Lung_Opacity",)
        )
    with pytest.raises(UserError, match=r"labels = 'covid': takes one of caltech101"):
        sources.load("image_folder", str(tmp_path), labels="covid")
    (tmp_path / "Covid").mkdir()
    with pytest.raises(UserError, match="COVID and Covid are both the class COVID"):
        sources.load("image_folder", str(tmp_path), **options)


@pytest.mark.parametrize("first", [0, 1])
def test_numbered_folders_are_the_classes_of_a_label_set_in_order(tmp_path, first):
    picture_folders(tmp_path, **{str(n + first): 0 for n in range(10)})
    # By name the last would be the third, were there eleven.
    for name in ("0", "1", "9", "10"):
        if (tmp_path / name).is_dir():
            save_picture(tmp_path / name / "0.png", np.full((4, 4, 3), int(name)))
            pixels = np.full((4, 4, 3), int(name))
            pixels[1:] = 99
            save_picture(tmp_path / name / "1.png", pixels)
    options = {"labels": "cifar10", "classes": ("truck", "airplane")}
    source = sources.load("image_folder", str(tmp_path), **options)
    assert source.train.class_names == ("truck", "airplane")
    assert source.train.inputs[:, 0, 0, 0].tolist() == [9 + first, first]
    (tmp_path / "1").rename(tmp_path / "11")
    with pytest.raises(UserError, match="no folder of the class 'truck', nor all"):
        sources.load("image_folder", str(tmp_path), **options)


def test_lists_split_as_the_data_set_does(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    picture_folders(root, cat=4, dog=4)
    # As Food-101's: in a folder beside the pictures, without their ending.
    (tmp_path / "train.txt").write_text("cat/3\ncat/1\n\ndog/0\n")
    (tmp_path / "test.txt").write_text("./dog/2.png\ncat/0.png\nbird/7.png\n")
    lists = {"train_list": "../train.txt", "test_list": "../test.txt"}

    def split(**options):
        source = sources.load("image_folder", str(root), **options)
        return [
            [(int(y), int(x[0, 0, 0])) for x, y in zip(*part[:2], strict=True)]
            for part in (source.train, source.test)
        ]

    train, test = [(0, 1), (0, 3), (1, 0)], [(0, 0), (1, 2)]
    assert split(**lists) == [train, test]
    rest = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 3)]
    assert split(test_list="../test.txt") == [rest, test]
    rest = [(0, 0), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert split(train_list="../train.txt") == [train, rest]
    assert split(**lists, classes=("dog",)) == [[(0, 0)], [(0, 2)]]

    (tmp_path / "test.txt").write_text("dog/2\ndog/0\ncat/3\n")
    with pytest.raises(UserError, match="cat/3.png and 1 more are in both train_list"):
        split(**lists)
    (tmp_path / "test.txt").write_text("dog/2\ndog/8\n")
    with pytest.raises(UserError, match="test.txt: lists dog/8 and 0 more that"):
        split(**lists)
    (tmp_path / "test.txt").write_text("2\n8\n")
    with pytest.raises(UserError, match="test.txt: lists no picture of these class"):
        split(**lists)
    with pytest.raises(UserError, match="none.txt: cannot be read"):
        split(test_list="none.txt")
    for part in ("train", "test"):
        (root / part / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="take a folder without train and test in it"):
        split(**lists)
