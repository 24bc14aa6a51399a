"""Folders of samples as the original's scripts leave them."""

import numpy as np
import pytest

from gptfl_jax.data import audio, sources
from gptfl_jax.data.original_samples import list_original
from gptfl_jax.data.synthetic import load_synthetic, synthetic_pictures
from gptfl_jax.labels import label_set

from .conftest import save_picture, write


def listed(folder, files, classes, endings=(".png",)):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"")
    return list_original(folder, classes, endings)


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("cifar10", {"airplane_train_0_7.png": "airplane"}),
        ("cifar10", {"an Airplane_train_3_12.png": "airplane"}),
        ("flowers102", {"pink primrose_train_photo_add_0_1.png": "pink primrose"}),
        ("food101", {"apple_pie_train_digital art image_add_1_0.png": "apple_pie"}),
        ("food101", {"hot dog_train_photo_add_1_0.png": "hot_dog"}),
        ("food101", {"hot_dog/anything.png": "hot_dog"}),
        (
            "covid_radiography",
            {"Viral Pneumonia_train_photo_0_3.png": "Viral Pneumonia"},
        ),
        ("eurosat", {"a Highway or Road_train_0_1.png": "Highway"}),
        ("cifar100", {"maple_tree/maple_tree_train_0_1.png": "maple_tree"}),
        ("cifar100", {"maple_tree/7.png": "maple_tree", "man_train_0_1.png": "man"}),
    ],
)
def test_every_form_of_name(name, files, tmp_path):
    found, left_out = listed(tmp_path, files, label_set(name).classes)
    assert dict(found) == files and not left_out


def test_classes_whose_names_contain_others(tmp_path):
    classes = ("cat", "caterpillar", "car", "scar", "toy", "toy_train", "train")
    files = {
        "cat_train_0_1.png": "cat",
        "caterpillar_train_0_1.png": "caterpillar",
        "car_train_photo_0_1.png": "car",
        "scar_add_0_1.png": "scar",
        "toy_train_0_1.png": "toy",
        "toy_train_train_0_1.png": "toy_train",
        "toy train_train_photo_add_0_1.png": "toy_train",
        "train_train_0_1.png": "train",
        "cat/scar_train_0_1.png": "cat",  # its folder says it
    }
    found, left_out = listed(tmp_path, files, classes)
    assert dict(found) == files and not left_out
    assert [file for file, _ in found] == sorted(files)


def test_what_is_no_sample_of_a_class_is_left_out(tmp_path):
    files = ("preview.png", ".cat_train_0_1.png", "cat_train_0_1.txt", "a.png")
    files += (
        "cats_train_photo_0_1.png",
        "dog/dog_train_0_1.png",
        "dog/cat_add_0_1.png",
    )
    found, left_out = listed(tmp_path, files, ("cat",))
    # In a folder of no class a file's own name still says what it is.
    assert found == [("dog/cat_add_0_1.png", "cat")]
    reasons = dict(left_out)
    assert set(reasons) == {
        "a.png",
        "cats_train_photo_0_1.png",
        "dog/dog_train_0_1.png",
    }
    assert reasons["a.png"].startswith("is not named <class>_train_<device>_<number>")
    assert reasons["cats_train_photo_0_1.png"] == "label 'cats' is not a class"
    assert reasons["dog/dog_train_0_1.png"] == "label 'dog' is not a class"


def test_pictures_in_a_folder_a_class(tmp_path):
    for grey, file in enumerate(("cat/0.png", "cat/1.jpg", "hot dog/a.png")):
        save_picture(tmp_path / file, np.full((8, 8, 3), 80 * grey))
    data, report = synthetic_pictures(tmp_path, ("hot_dog", "cat"))
    assert data.labels.tolist() == [1, 1, 0] and report.loaded == 3
    assert np.abs(data.inputs[:, 0, 0, 0] - np.array([0, 80, 160])).max() <= 1


def test_clips(fsdd, tmp_path):
    source = sources.load("fsdd", str(fsdd), features={"num_mels": 4, "fft_size": 256})
    names = ("3_add_0_0.wav", "7_add_1_12.wav", "seven_add_0_3.wav", "ten_add_0_0.wav")
    for seed, name in enumerate(names):
        write(tmp_path / name, seed, samples=800)
    data, report = load_synthetic(tmp_path, source)
    assert data.labels.tolist() == [3, 7, 7]
    assert report.left_out == (("ten_add_0_0.wav", "label 'ten' is not a class"),)
    clips = [audio.Clip(tmp_path / name) for name in names[:3]]
    features, lengths = audio.extract(clips, source.sounds.settings)
    np.testing.assert_array_equal(data.inputs[1], lengths)
    np.testing.assert_array_equal(data.inputs[0][:, : lengths.max()], features)
