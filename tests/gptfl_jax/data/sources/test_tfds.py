"""Sets of TensorFlow Datasets: mocked ones, and one that is prepared here."""

import sys

import numpy as np
import pytest

from gptfl_jax.data import images, picture_cache, sources, stored_rows
from gptfl_jax.errors import UserError
from gptfl_jax.labels import label_set

from ..conftest import save_picture

tensorflow_datasets = pytest.importorskip(
    "tensorflow_datasets", reason="needs pip install 'gptfl-jax[tfds]'"
)
testing = tensorflow_datasets.testing
CLASSES = list(reversed(label_set("eurosat").classes))


class Fields(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Ten pictures of 4x6 pixels a split, a class each, and three owners."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    SPLITS = ("train", "validation")
    CLASSES = CLASSES
    url_infos = None  # nothing is downloaded

    def _info(self):
        features = tensorflow_datasets.features
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": features.ClassLabel(names=self.CLASSES),
                    "owner": features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in self.SPLITS}

    def _generate_examples(self, name):
        for i in range(10):
            pixels = np.full((4, 6, 3), 10 * i + (name != "train"))
            pixels[:, 0] = pixels[:, 5] = 255  # outside the middle square
            path = self.data_path.parent / f"pictures/{name}_{i}.png"
            save_picture(path, pixels)
            yield i, {"image": str(path), "label": i, "owner": f"farm {i % 3}"}


class Scenes(Fields):
    """With a class that is in no label set."""

    CLASSES = [*CLASSES[:3], "Clouds", *CLASSES[3:]]


class Unsplit(Fields):
    """Four times as many, without a test split: two pictures a class, each twice."""

    SPLITS = ("train",)

    def _generate_examples(self, name):
        for copy in range(4):
            part = ("train", "other")[copy // 2]
            for i, example in super()._generate_examples(part):
                yield f"{copy}-{i}", example


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    for kind in (Fields, Scenes, Unsplit):
        kind(data_dir=root, file_format="array_record").download_and_prepare()
    return str(root)


def test_what_was_prepared_is_read(folder):
    source = sources.load("tfds", folder, name="fields", client_key="owner")
    assert source.train.inputs.shape == source.test.inputs.shape == (10, 4, 4, 3)
    assert source.train.class_names == tuple(CLASSES)
    # The order of a prepared set is its own: a picture's grey is ten times its class.
    for part, more in ((source.train, 0), (source.test, 1)):
        grey = part.inputs[:, 0, 0, 0]
        np.testing.assert_array_equal(grey, 10 * part.labels + more)
        assert (part.inputs == grey[:, None, None, None]).all()
        assert part.clients.tolist() == [f"farm {n % 3}" for n in part.labels]
    assert "tensorflow" not in sys.modules
    small = sources.load("tfds", folder, name="fields", image_size=2, channels=1)
    assert small.test.inputs.shape == (10, 2, 2, 1) and small.test.clients is None


def test_decoded_pictures_are_kept(folder, tmp_path, monkeypatch):
    options = {"name": "fields", "client_key": "owner", "channels": 1}
    whole = sources.load("tfds", folder, **options)
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(picture_cache, "BLOCK", 4)
    decoded, convert = [], images.convert
    monkeypatch.setattr(
        images, "convert", lambda *given: decoded.append(1) or convert(*given)
    )
    for _ in range(2):
        source = sources.load("tfds", folder, **options)
        assert len(decoded) == 20  # of both splits, once
        for part, other in zip(source[:2], whole[:2], strict=True):
            assert isinstance(part.inputs, stored_rows.StoredRows)
            np.testing.assert_array_equal(part.inputs, other.inputs)
            assert part.labels.tolist() == other.labels.tolist()
            assert part.clients.tolist() == other.clients.tolist()
    options |= {"train_split": "train[30%:]", "test_split": "train[:30%]"}
    parts = sources.load("tfds", folder, **options)
    for part, rows in ((parts.train, slice(3, 10)), (parts.test, slice(0, 3))):
        np.testing.assert_array_equal(part.inputs, whole.train.inputs[rows])


def test_classes_take_the_order_of_a_known_label_set(folder):
    source = sources.load("tfds", folder, name="fields", labels="eurosat")
    assert source.train.class_names == label_set("eurosat").classes
    grey = source.train.inputs[:, 0, 0, 0]
    np.testing.assert_array_equal(grey, 10 * (9 - source.train.labels))
    names = sources.class_names("tfds", folder, name="fields", labels="eurosat")
    assert names == source.train.class_names
    assert sources.known_labels("tfds", name="fields") == "tfds"
    assert sources.known_labels("tfds", name="fields", labels="food101") == "food101"
    assert sources.known_labels("tfds", name="oxford_flowers102:2.*") == "flowers102"
    with pytest.raises(
        UserError, match="= 'food101': its 101 classes are not the 10 o"
    ):
        sources.load("tfds", folder, name="fields", labels="food101")


def test_classes_that_a_label_set_lacks_are_left_out(folder):
    source = sources.load("tfds", folder, name="scenes", labels="eurosat")
    # Of ten pictures of the first ten of eleven classes, that of the fourth.
    grey = source.train.inputs[:, 0, 0, 0] // 10
    assert sorted(grey) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    names = [Scenes.CLASSES[n] for n in grey]
    assert [source.train.class_names[n] for n in source.train.labels] == names
    assert len(source.train.class_names) == 10


def test_splits(folder):
    drawn = sources.load("tfds", folder, name="unsplit")
    greys = [part.inputs[:, 0, 0, 0].tolist() for part in (drawn.train, drawn.test)]
    for part in (drawn.train, drawn.test):
        assert sorted(part.labels.tolist()) == sorted([*range(10), *range(10)])
    assert not set(greys[0]) & set(greys[1])  # no picture is on both sides
    options = {"train_split": "validation", "test_split": "train[:40%]"}
    parts = sources.load("tfds", folder, name="fields", **options)
    assert len(parts.train.labels) == 10 and len(parts.test.labels) == 4
    assert set(parts.train.inputs[:, 0, 0, 0] % 10) == {1}
    parts = {"train_split": "train[:80%]", "test_split": "train[80%:]"}
    parts = sources.load("tfds", folder, name="fields", **parts)
    assert len(parts.train.labels) == 8 and len(parts.test.labels) == 2
    parts = {"train_split": "train", "test_split": "train[80%:]"}
    with pytest.raises(UserError, match=r"'train\[80%:\]' share examples: take parts"):
        sources.load("tfds", folder, name="fields", **parts)
    with pytest.raises(
        UserError, match=r"fields: no split 'half' .* splits train, val"
    ):
        sources.load("tfds", folder, name="fields", test_split="half")


@pytest.mark.parametrize(
    ("name", "known", "size"),
    [
        ("caltech101", "caltech101", 8),
        ("cifar10", "cifar10", 0),
        ("cifar100", "cifar100", 0),
        ("food101", "food101", 8),
        ("mnist", "mnist", 0),
        ("oxford_flowers102", "flowers102", 8),
        ("eurosat", "eurosat", 0),
        ("fashion_mnist", "fashion_mnist", 0),
        ("emnist", "emnist", 0),
        ("emnist/digits", "mnist", 0),
        ("svhn_cropped", "svhn", 0),
    ],
)
def test_released_sets(name, known, size, tmp_path):
    with testing.mock_data(num_examples=6):
        source = sources.load("tfds", str(tmp_path), name=name, image_size=size)
    for part in (source.train, source.test):
        assert len(part.inputs) == len(part.labels) == 6
        assert part.labels.min() >= 0
        assert part.inputs.shape[1] == part.inputs.shape[2]
        assert part.labels.max() < part.num_classes
    assert source.train.class_names == label_set(known).classes


def test_emnist_is_set_upright(tmp_path):
    with testing.mock_data(num_examples=3):
        source = sources.load("tfds", str(tmp_path), name="emnist/balanced")
        builder = tensorflow_datasets.builder("emnist/balanced", data_dir=tmp_path)
        released = [row["image"] for row in builder.as_data_source(split="train")]
    assert source.train.class_names == tuple(map(str, range(47)))
    assert sources.known_labels("tfds", name="emnist/balanced:3.*") == "tfds"
    for ours, theirs in zip(source.train.inputs, released, strict=True):
        np.testing.assert_array_equal(ours[3, 20], theirs[20, 3])
        np.testing.assert_array_equal(ours, np.transpose(theirs, (1, 0, 2)))


def test_what_is_missing_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="options.name is missing: takes a name"):
        sources.load("tfds", folder)
    with pytest.raises(
        UserError, match=r"no_such_set.*: takes a set of tensorflow.org"
    ):
        sources.load("tfds", folder, name="no_such_set")
    build = f"`tfds build cifar10 --file_format=array_record --data_dir={tmp_path}`"
    with pytest.raises(UserError) as error:
        sources.load("tfds", str(tmp_path), name="cifar10")
    assert build in str(error.value) and str(error.value).isprintable()
    with pytest.raises(
        UserError, match="no feature 'writer'; it has image, label, own"
    ):
        sources.load("tfds", folder, name="fields", client_key="writer")
    with pytest.raises(UserError, match="takes a feature with class names, which that"):
        sources.load("tfds", folder, name="fields", label_key="owner")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(
        UserError, match=r"needs TensorFlow Datasets .*gptfl-jax\[tfds\]"
    ):
        sources.load("tfds", folder, name="fields")
