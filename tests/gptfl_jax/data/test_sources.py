import difflib
import io
import os
import pathlib
import pickle
import struct
import tarfile

import numpy as np
import PIL.Image
import pytest
from sklearn.datasets import load_digits

from gptfl_jax import artifacts
from gptfl_jax.data import datasets, sources
from gptfl_jax.errors import UserError


def test_digits_blocks_are_copies_of_one_form():
    labels = load_digits().target
    ends = (*sources.DIGITS_BLOCKS[1:], len(labels))
    blocks = [
        labels[start:end].tolist()
        for start, end in zip(sources.DIGITS_BLOCKS, ends, strict=True)
    ]
    assert len(blocks) == 14
    form = blocks[0]
    assert len(form) == 130 and form[:30] == list(range(10)) * 3
    for block in blocks:
        # A block is the form with a few digits missing or misread, nothing else.
        matcher = difflib.SequenceMatcher(None, form, block, autojunk=False)
        assert matcher.ratio() > 0.95
        assert 122 <= len(block) <= 130
        assert block[:17] in (form[:17], form[1:18])


def test_digits_are_split_by_writing_run():
    digits = load_digits()
    source = sources.load("sklearn_digits")
    assert source.train.inputs.shape == (1415, 8, 8, 1)
    assert source.test.inputs.shape == (382, 8, 8, 1)
    both = np.concatenate([source.train.inputs, source.test.inputs])[..., 0]
    assert both.dtype == np.uint8
    np.testing.assert_array_equal(np.rint(both / 255 * 16), digits.images)
    np.testing.assert_array_equal(source.test.labels, digits.target[1415:])
    sizes = np.bincount(source.train.clients)
    assert sizes.tolist() == [130, 126, 130, 130, 130, 130, 130, 123, 128, 130, 128]
    assert np.unique(source.test.clients).tolist() == [11, 12, 13]
    assert source.train.class_names == tuple("0123456789")

    one = sources.load("sklearn_digits", test_blocks=1)
    assert len(one.test.labels) == 130
    early = sources.load("sklearn_digits", blocks=11, test_blocks=3)
    np.testing.assert_array_equal(early.train.inputs, source.train.inputs[:1029])
    np.testing.assert_array_equal(early.test.inputs, source.train.inputs[1029:])
    large = sources.load("sklearn_digits", image_size=16, channels=3)
    assert large.test.inputs.shape == (382, 16, 16, 3)
    np.testing.assert_array_equal(
        large.test.inputs[:, ::2, ::2, 1], source.test.inputs[..., 0]
    )
    assert large.mean == (0.5, 0.5, 0.5)


def test_unknown_sources_and_options_are_refused():
    with pytest.raises(UserError, match="takes one of cifar10, cifar100, crema_d"):
        sources.load("mnist")
    with pytest.raises(UserError, match="takes one of"):
        sources.load("load_synthetic", "folder")
    with pytest.raises(
        UserError, match="does not take runs; it takes blocks, test_blocks"
    ):
        sources.load("sklearn_digits", runs=2)
    with pytest.raises(UserError, match="from 1 to 13"):
        sources.load("sklearn_digits", test_blocks=14)
    with pytest.raises(UserError, match=r"blocks = 15: takes .* from 2 to 14"):
        sources.load("sklearn_digits", blocks=15)
    with pytest.raises(UserError, match="data.folder is empty"):
        sources.load("cifar10")


# CIFAR ------------------------------------------------------------------------------


def cifar_pixels(seed, count):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return pixels, pixels.transpose(0, 3, 1, 2).reshape(count, -1)


def write_cifar10_python(folder):
    folder.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        _, rows = cifar_pixels(seed, 2)
        content = as_python2_wrote(rows, [seed, 9 - seed])
        if seed == 1:  # written again by Python 3
            batch = {b"data": rows, b"labels": [seed, 9 - seed]}
            content = pickle.dumps(batch, protocol=2)
        (folder / name).write_bytes(content)
    meta = {b"label_names": [b"name%d" % i for i in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def write_cifar10_binary(folder):
    folder.mkdir()
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for seed, name in enumerate(names):
        _, rows = cifar_pixels(seed, 2)
        labels = np.array([[seed], [9 - seed]], np.uint8)
        (folder / name).write_bytes(np.hstack([labels, rows]).tobytes())
    (folder / "batches.meta.txt").write_text(
        "\n".join(f"name{i}" for i in range(10)) + "\n\n"
    )


def as_python2_wrote(rows, labels):
    """The released files are pickles of Python 2: byte strings, numpy 1 names."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01K" + bytes([len(rows)]) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", rows.size)
        + rows.tobytes()
        + b"tb"
    )
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + numbers + b"eu."


@pytest.mark.parametrize("form", ["python", "binary", "tar"])
def test_cifar10(tmp_path, form):
    if form == "binary":
        write_cifar10_binary(tmp_path / "cifar-10-batches-bin")
    else:
        write_cifar10_python(tmp_path / "cifar-10-batches-py")
    if form == "tar":
        (tmp_path / "archive").mkdir()
        with tarfile.open(tmp_path / "archive/cifar-10-python.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "cifar-10-batches-py", "cifar-10-batches-py")
        tmp_path = tmp_path / "archive"
    source = sources.load("cifar10", str(tmp_path))
    expected = np.concatenate([cifar_pixels(seed, 2)[0] for seed in range(5)])
    np.testing.assert_array_equal(source.train.inputs, expected)
    assert source.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert source.test.labels.tolist() == [5, 4]
    assert source.test.class_names == tuple(f"name{i}" for i in range(10))
    assert source.mean == pytest.approx(datasets.IMAGENET_MEAN)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_uses_the_fine_labels(tmp_path, binary):
    pixels, rows = cifar_pixels(0, 3)
    names = [f"fine{i}" for i in range(100)]
    for part in ("train", "test"):
        if binary:
            labels = np.array([[1, 99], [2, 50], [3, 0]], np.uint8)
            (tmp_path / f"{part}.bin").write_bytes(np.hstack([labels, rows]).tobytes())
        else:
            batch = {
                "data": rows,
                "fine_labels": [99, 50, 0],
                "coarse_labels": [1, 2, 3],
            }
            (tmp_path / part).write_bytes(pickle.dumps(batch))
    if binary:
        (tmp_path / "fine_label_names.txt").write_text("\n".join(names))
    else:
        (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    source = sources.load("cifar100", str(tmp_path))
    np.testing.assert_array_equal(source.test.inputs, pixels)
    assert source.train.labels.tolist() == [99, 50, 0]
    assert source.train.class_names == tuple(names)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_cifar_pickles_are_not_executed(tmp_path, capsys):
    write_cifar10_python(tmp_path / "cifar-10-batches-py")
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(UserError, match="names builtins.print, which is forbidden"):
        sources.load("cifar10", str(tmp_path))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"test_batch: no file of CIFAR \("):
        sources.load("cifar10", str(tmp_path))
    file.unlink()
    with pytest.raises(UserError, match="test_batch is missing"):
        sources.load("cifar10", str(tmp_path))
    assert "executed" not in capsys.readouterr().out


def test_truncated_or_absent_cifar_is_refused(tmp_path):
    with pytest.raises(UserError, match="cifar.html"):
        sources.load("cifar10", str(tmp_path))
    write_cifar10_binary(tmp_path / "cifar-10-batches-bin")
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="truncated"):
        sources.load("cifar10", str(tmp_path))


def batch(**changes):
    return pickle.dumps({"data": cifar_pixels(0, 2)[1], "labels": [1, 2]} | changes, 2)


def meta(*names):
    return pickle.dumps({"label_names": list(names)})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        # All later labels would belong to other pictures.
        ("data_batch_2", batch(labels=[1]), "it has 1 labels for 2 pictures"),
        ("data_batch_2", batch(labels=[1, 2, 3]), "it has 3 labels for 2 pictures"),
        ("data_batch_2", batch(labels=[1, 10]), "labels that are no numbers of 0 to 9"),
        ("data_batch_2", batch(labels=[1, -1]), "labels that are no numbers of 0 to 9"),
        ("data_batch_2", batch(labels=[1, 1.5]), "labels that are no numbers"),
        ("data_batch_2", batch(labels=[1, [2]]), "labels that are no numbers"),
        ("data_batch_2", batch(labels=np.array([1, 255], np.uint8)), "of 0 to 9"),
        ("data_batch_2", batch(labels=None), "it holds no labels"),
        ("data_batch_2", batch(data=np.zeros((2, 3071), np.uint8)), "no pictures"),
        ("data_batch_2", batch(data=np.zeros((2, 3072), np.int8)), "no pictures"),
        ("data_batch_2", batch(data=[0]), "it holds no pictures"),
        ("data_batch_2", pickle.dumps([1]), "it holds no dict"),
        ("batches.meta", meta(*"abcdefghi"), "it names 9 classes in 9 lines, not 10"),
        ("batches.meta", meta(*"abcdefghij", "k"), "it names 11 classes"),
        ("batches.meta", meta(*"abcdefghii"), "it names 9 classes in 10 lines"),
        ("batches.meta", meta(*"abcdefghi", 1), "it names 9 classes in 10 lines"),
        ("batches.meta", pickle.dumps({"names": []}), "it has no label_names"),
    ],
)
def test_cifar_whose_parts_do_not_fit_is_refused(name, content, message, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10_python(folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: no file of CIFAR \(.*{message}"):
        sources.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("label", [10, 200, 255])
def test_labels_of_binary_cifar_are_checked(label, tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    write_cifar10_binary(folder)
    content = bytearray((folder / "data_batch_4.bin").read_bytes())
    content[3073] = label
    (folder / "data_batch_4.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"data_batch_4.bin: .* no numbers of 0 to 9"):
        sources.load("cifar10", str(tmp_path))
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghijkl"))
    with pytest.raises(UserError, match="batches.meta.txt: .*it names 12 classes"):
        sources.load("cifar10", str(tmp_path))


# Folders of pictures ----------------------------------------------------------------


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.asarray(pixels, np.uint8)).save(path, **options)


def test_image_folder_crops_resizes_and_reports(tmp_path, capsys):
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                wide = np.full((4, 8, 3), 50 * label + i)
                wide[:, :2] = wide[:, 6:] = 255  # outside the middle square
                save(tmp_path / part / name / f"{i}.png", wide)
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
    save(tmp_path / "train/cat/large.png", np.zeros((9, 9, 3)))
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
            save(root / name / f"{i}.png", np.full((4, 4, 3), i))


def test_what_systems_leave_among_pictures_is_no_class(tmp_path, capsys):
    picture_folders(tmp_path, cat=3, dog=3, __MACOSX=2)
    for name in (".ipynb_checkpoints", "cat/.ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "0.png", np.zeros((4, 4, 3)))
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
        save(tmp_path / "cat" / f"{name}.png", np.zeros((4, 4, 3)))
    broken = os.fsencode(tmp_path / "cat") + b"/\xff\x1b[31m.png"
    with open(broken, "wb") as file:
        file.write(b"no picture")
    assert len(sources.load("image_folder", str(tmp_path)).train.labels) == 1
    assert r"cat/\udcff\x1b[31m.png: cannot be decoded" in capsys.readouterr().out
    os.rename(tmp_path / "cat", os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(UserError, match=r"class name .\\udcff.: takes words in UTF-8"):
        sources.load("image_folder", str(tmp_path))


def test_hold_out_is_a_share_of_each_class():
    labels = np.array([0] * 20 + [1] * 10 + [2] * 2 + [3], np.int32)
    held_out = sources.hold_out(labels, 0.1, seed=0)
    assert np.bincount(labels[held_out]).tolist() == [2, 1, 1]  # none of class 3
    np.testing.assert_array_equal(held_out, sources.hold_out(labels, 0.1, seed=0))
    assert (held_out != sources.hold_out(labels, 0.1, seed=1)).any()


# Synthetic pictures -----------------------------------------------------------------

CLASSES = ("cat", "car")


@pytest.fixture
def synthetic(tmp_path) -> pathlib.Path:
    """Six 32x32 RGB pictures and their manifest; brightness 10 i + channel."""
    folder = tmp_path / "synthetic"
    samples = []
    for i in range(6):
        label = CLASSES[i % 2]
        file = f"{label}/{label}_{i}.png"
        save(folder / file, np.full((32, 32, 3), 10 * i) + np.arange(3))
        samples.append(artifacts.Sample(file, label, "a prompt", i, 7.5, "glyphs"))
    artifacts.append_samples(folder, samples)
    return folder


def test_synthetic_pictures_follow_the_manifest(synthetic):
    data, report = sources.synthetic_pictures(synthetic, CLASSES)
    assert data.inputs.shape == (6, 32, 32, 3)
    assert data.inputs[:, 5, 5, 2].tolist() == [2, 12, 22, 32, 42, 52]
    assert data.labels.tolist() == [0, 1] * 3 and data.class_names == CLASSES
    assert report == sources.LoadReport(6)
    assert str(report) == "6 synthetic pictures loaded"


def test_synthetic_pictures_are_converted_by_block_means(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    save(tmp_path / "cat_train_0_0.png", pixels)
    data, _ = sources.synthetic_pictures(tmp_path, CLASSES, image_size=8, channels=1)
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    blocks = grey.reshape(8, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(data.inputs[0, ..., 0], blocks, atol=0.5 + 1e-4)


def test_broken_pictures_are_reported_and_left_out(synthetic):
    (synthetic / "cat/cat_0.png").write_bytes(
        (synthetic / "cat/cat_0.png").read_bytes()[:60]
    )
    (synthetic / "car/car_1.png").unlink()
    save(synthetic / "cat/cat_2.png", np.zeros((16, 32, 3)))
    PIL.Image.new("RGBA", (32, 32)).save(synthetic / "car/car_3.png")
    artifacts.append_samples(
        synthetic, [artifacts.Sample("cat/x.png", "cab", "", 0, None, "glyphs")]
    )
    data, report = sources.synthetic_pictures(synthetic, CLASSES, 8, 1)
    assert data.inputs[:, 0, 0, 0].tolist() == [41, 51]
    assert data.labels.tolist() == [0, 1]
    assert report.loaded == 2
    reasons = dict(report.left_out)
    assert reasons["cat/x.png"] == "label 'cab' is not a class"
    assert reasons["cat/cat_0.png"].startswith("cannot be decoded")
    assert reasons["car/car_1.png"] == "cannot be read (No such file or directory)"
    assert reasons["cat/cat_2.png"] == "size 32x16, most are 32x32"
    assert reasons["car/car_3.png"] == "mode RGBA, not RGB or L"
    assert "2 synthetic pictures loaded; 5 left out:" in str(report)


def test_pictures_that_changed_since_they_were_made_are_left_out(synthetic):
    """Whole pictures, but other ones than the manifest has the digests of."""
    lines = [
        line._replace(sha256=artifacts.digest((synthetic / line.file).read_bytes()))
        for line in artifacts.read_manifest(synthetic)
    ]
    artifacts.write_manifest(synthetic, lines)
    whole, report = sources.synthetic_pictures(synthetic, CLASSES)
    assert report == sources.LoadReport(6)
    save(synthetic / "cat/cat_2.png", np.full((32, 32, 3), 99))
    data, report = sources.synthetic_pictures(synthetic, CLASSES)
    rest = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(data.inputs, whole.inputs[rest])
    assert report == sources.LoadReport(5, (("cat/cat_2.png", artifacts.CHANGED),))


def test_manifest_line_that_leaves_the_folder_is_refused(synthetic):
    save(synthetic.parent / "secret.png", np.zeros((32, 32, 3)))
    artifacts.append_samples(
        synthetic, [artifacts.Sample("../secret.png", "cat", "", 0, None, "glyphs")]
    )
    with pytest.raises(UserError, match="line 7"):
        sources.synthetic_pictures(synthetic, CLASSES)


def test_no_usable_picture_is_an_error(tmp_path):
    with pytest.raises(UserError, match="python -m generate.images"):
        sources.synthetic_pictures(tmp_path / "absent", CLASSES)
    save(tmp_path / "dog_train_0_0.png", np.zeros((32, 32, 3)))
    with pytest.raises(UserError, match="label 'dog' is not a class"):
        sources.synthetic_pictures(tmp_path, CLASSES)


def test_the_originals_file_names_are_matched_as_a_whole(tmp_path):
    for i, name in enumerate(
        [
            "car_train_0_3.png",
            "scar_train_0_1.png",
            "cat_train_12_0.png",
            "cat_add_0_1.png",
            "preview.png",
            "a_Cat_train_digital art_add_0_2.png",
        ]
    ):
        save(tmp_path / name, np.full((32, 32), i))
    data, report = sources.synthetic_pictures(tmp_path, CLASSES)
    assert data.inputs.shape == (4, 32, 32, 1)
    # In the order of their names.
    assert data.inputs[:, 0, 0, 0].tolist() == [5, 0, 3, 2]
    assert data.labels.tolist() == [0, 1, 0, 0]
    assert report.left_out == (("scar_train_0_1.png", "label 'scar' is not a class"),)


def test_grey_and_rgb_pictures_mix(tmp_path):
    save(tmp_path / "cat_train_0_0.png", np.full((4, 4), 7))
    save(tmp_path / "cat_train_0_1.png", np.full((4, 4, 3), 9))
    data, _ = sources.synthetic_pictures(tmp_path, CLASSES)
    assert data.inputs.shape == (2, 4, 4, 3)
    assert data.inputs[:, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]


def test_png_bytes_cut_anywhere_never_load(tmp_path):
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
    content = buffer.getvalue()
    save(tmp_path / "car_train_0_0.png", np.zeros((32, 32, 3)))
    lengths = range(0, len(content) - 12, 97)  # the last 12 bytes are an empty chunk
    for length in lengths:
        (tmp_path / f"cat_train_0_{length}.png").write_bytes(content[:length])
    data, report = sources.synthetic_pictures(tmp_path, CLASSES)
    assert len(data.labels) == 1 and len(report.left_out) == len(lengths)
