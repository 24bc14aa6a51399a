import pickle
import struct
import tarfile

import numpy as np
import pytest

from gptfl_jax.data import sources
from gptfl_jax.errors import UserError


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
    assert source.mean == pytest.approx((0.4914, 0.4822, 0.4465))
    assert source.std == pytest.approx((0.2470, 0.2435, 0.2616))


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
