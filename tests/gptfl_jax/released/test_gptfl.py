"""Releases of GPT-FL's authors: where they are had, and that each fits its model."""

import hashlib
import io
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptfl_jax import labels, models, web_files
from gptfl_jax.errors import UserError
from gptfl_jax.released import gptfl, hub

NAME = "convnet_cifar10"
FILE = gptfl.RELEASES[NAME].file


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTFL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(web_files, "_FIRST_PAUSE_S", 0.0)
    return tmp_path / "cache" / "weights"


def zipped(files, method=zipfile.ZIP_DEFLATED):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


@pytest.fixture
def served(web_server, monkeypatch):
    """The server, and an archive in the place of the authors'."""
    files = {f"__MACOSX/weight/{FILE}": b"?", f"weight/{FILE}": b"weights" * 500}
    web_server.files["/weight.zip"] = zipped({**files, "weight/other.pth": b"other"})
    release = gptfl.RELEASES[NAME]._replace(address=f"{web_server.url}/weight.zip")
    monkeypatch.setitem(gptfl.RELEASES, NAME, release)
    return web_server


def test_a_file_of_the_archive(served, cache):
    served.tags["/weight.zip"] = '"one"'
    served.cuts = [100]  # the connection breaks, and the download goes on
    found = gptfl.find(NAME)
    assert found.name == FILE and found.read_bytes() == b"weights" * 500
    assert found.is_relative_to(cache)
    assert [request.range for request in served.requests] == ["", "bytes=100-"]
    assert gptfl.find(NAME) == found
    assert models.find_weights(NAME, "convnet", width=128) == found
    assert len(served.requests) == 2
    assert not list(found.parent.glob("*.part"))


def test_another_copy(served, tmp_path):
    content = served.files["/weight.zip"]
    path = tmp_path / "copy.zip"
    path.write_bytes(content)
    assert gptfl.find(NAME, str(path)) == tmp_path / FILE
    digest = hashlib.sha256(content).hexdigest()
    served.files["/mirror.zip"] = content
    address = f"{served.url}/mirror.zip#sha256={digest}"
    assert gptfl.find(NAME, address).read_bytes() == b"weights" * 500
    (tmp_path / "own.pth").write_bytes(b"no archive")
    assert gptfl.find(NAME, str(tmp_path / "own.pth")) == tmp_path / "own.pth"
    # What torch.save writes is a zip archive as well.
    torch = tmp_path / "torch.pth"
    torch.write_bytes(zipped({"archive/data.pkl": b""}))
    assert gptfl.find(NAME, str(torch)) == torch


def test_what_cannot_be_had_says_how_to_give_it(served, tmp_path):
    served.files.clear()
    with pytest.raises(UserError) as failed:
        models.find_weights(NAME, "convnet")
    wanted = (served.url, "404 Not Found", FILE, f"train.weights --name={NAME} --url=")
    assert all(text in str(failed.value) for text in wanted)
    path = tmp_path / "a.zip"
    path.write_bytes(zipped({"weight/other.pth": b""}))
    with pytest.raises(UserError, match=f"holds no {FILE}, but weight/other.pth"):
        gptfl.find(NAME, str(path))
    content = zipped({f"a/{FILE}": b"weights" * 500}, zipfile.ZIP_STORED)
    path.write_bytes(content.replace(b"weightsweights", b"weightsWEIGHTS"))
    with pytest.raises(UserError, match=r"a\.zip: damaged .*delete it, and it is"):
        gptfl.find(NAME, str(path))
    assert sorted(file.name for file in tmp_path.glob("*.*")) == ["a.zip"]
    with pytest.raises(UserError, match="no such weights; did you mean vgg19_cifar10"):
        gptfl.find("vgg19_cifar1")
    with pytest.raises(UserError, match="there are convnet_cifar10, convnet_cifar100"):
        gptfl.find("unknown")


def test_weights_of_another_model_name_theirs():
    with pytest.raises(UserError) as refused:
        models.find_weights("resnet20_cifar10", "resnet", depth=20)
    fields = "name=resnet", "options.depth=20", "options.track_running_stats=False"
    assert all(f"--config.model.{field}" in str(refused.value) for field in fields)
    with pytest.raises(UserError, match="--config.model.name=vgg .*depth=19"):
        models.find_weights("vgg19_cifar10", "convnet")


# Names and shapes of the files, as the authors' torch modules make them --------------


def conv(name, out, into, window=3, bias=False):
    shapes = {f"{name}.weight": (out, into, window, window)}
    return shapes | ({f"{name}.bias": (out,)} if bias else {})


def norm(name, channels, running=True):
    leaves = ["weight", "bias"] + ["running_mean", "running_var"] * running
    shapes = {f"{name}.{leaf}": (channels,) for leaf in leaves}
    return shapes | ({f"{name}.num_batches_tracked": ()} if running else {})


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def convnet(classes, pixels):
    shapes, before = {}, 3
    for i in (0, 4, 8):
        shapes |= conv(f"features.{i}", 128, before, bias=True)
        shapes |= norm(f"features.{i + 1}", 128, running=False)
        before = 128
    return shapes | linear("classifier", classes, 128 * (pixels // 8) ** 2)


def resnet20(classes):
    shapes, before = conv("conv1", 16, 3) | norm("bn1", 16, False), 16
    for layer, width in ((1, 16), (2, 32), (3, 64)):
        for i in range(3):
            for j in (1, 2):
                shapes |= conv(f"layer{layer}.{i}.conv{j}", width, before)
                shapes |= norm(f"layer{layer}.{i}.bn{j}", width, False)
                before = width
    return shapes | linear("linear", classes, 64)


def resnet(classes, blocks, bottleneck):
    shapes, before = conv("conv1", 64, 3, 7) | norm("bn1", 64), 64
    for layer, count in enumerate(blocks, 1):
        width = 32 * 2**layer
        after = 4 * width if bottleneck else width
        for i in range(count):
            windows = (1, 3, 1) if bottleneck else (3, 3)
            block, into = f"layer{layer}.{i}", before
            for j, window in enumerate(windows, 1):
                out = after if j == len(windows) else width
                shapes |= conv(f"{block}.conv{j}", out, into, window)
                shapes |= norm(f"{block}.bn{j}", out)
                into = out
            if before != after:
                shapes |= conv(f"{block}.downsample.0", after, before, 1)
                shapes |= norm(f"{block}.downsample.1", after)
            before = after
    shapes |= linear("fc", classes, before)
    return {f"backbone.{name}": shape for name, shape in shapes.items()}


def vgg19(classes):
    shapes, before, place = {}, 3, 0
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            shapes |= conv(f"features.{place}", width, before, bias=True)
            before, place = width, place + 2
        place += 1
    shapes |= linear("classifier.0", 4096, 512 * 49)
    shapes |= linear("classifier.3", 4096, 4096)
    return shapes | linear("classifier.6", classes, 4096)


def audio(classes):
    shapes = {"conv.0.weight": (64, 128, 3), "conv.0.bias": (64,)}
    shapes |= {"conv.3.weight": (128, 64, 3), "conv.3.bias": (128,)}
    for ending in ("", "_reverse"):
        for kind in ("ih", "hh"):
            shapes[f"rnn.weight_{kind}_l0{ending}"] = (384, 128)
            shapes[f"rnn.bias_{kind}_l0{ending}"] = (384,)
    shapes |= linear("pred_layer.0", 128, 256)
    return shapes | linear("pred_layer.2", classes, 128)


# Shapes, and parameters as published or worked out.
FILES = {
    "convnet_cifar10": (convnet(10, 32), 320_010),
    "convnet_cifar100": (convnet(100, 32), 320_010 + 90 * 2049),
    "convnet_flower": (convnet(102, 224), 299_520 + 102 * (128 * 28 * 28 + 1)),
    "resnet20_cifar10": (resnet20(10), 269_722),
    "resnet18_cifar10_imagenet": (resnet(10, (2, 2, 2, 2), False), 11_181_642),
    "resnet18_flower": (resnet(102, (2, 2, 2, 2), False), 11_176_512 + 102 * 513),
    "resnet18_food101": (resnet(101, (2, 2, 2, 2), False), 11_176_512 + 101 * 513),
    "resnet18_food101_imagenet": (
        *(resnet(101, (2, 2, 2, 2), False), 11_176_512 + 101 * 513),
    ),
    "resnet50_cifar100": (resnet(100, (3, 4, 6, 3), True), 23_712_932),
    "resnet50_cifar100_imagenet": (resnet(100, (3, 4, 6, 3), True), 23_712_932),
    "vgg19_cifar10": (vgg19(10), 139_611_210),
    "vgg19_cifar100": (vgg19(100), 139_611_210 + 90 * 4097),
    "audio_conv_rnn_speech_commands": (audio(36), 285_028),
    "audio_conv_rnn_esc50": (audio(50), 285_028 + 14 * 129),
}


def shapes_of(name):
    """The variables of a release's model, as shapes."""
    release = gptfl.RELEASES[name]
    classes = len(labels.label_set(release.labels).classes) + len(release.extra_classes)
    model = models.create(release.model, classes, **release.options)
    # The number of frames of a sound decides no shape.
    shape = release.shape if len(release.shape) == 3 else (8, release.shape[1])
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))


def test_every_release_is_described():
    assert set(FILES) == set(gptfl.RELEASES)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_same_names_and_shapes_fits(name, tmp_path, monkeypatch):
    shapes, count = FILES[name]
    # Zeros that take no memory.
    file = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    monkeypatch.setattr(hub, "read_weights", lambda _: file)
    path = tmp_path / "w.pth"
    path.touch()
    wanted = shapes_of(name)
    variables, whole = models.load_weights(gptfl.RELEASES[name].model, wanted, path)
    assert whole
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])]
    assert sum(sizes) == count
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, wanted)
