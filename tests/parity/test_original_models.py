"""The original's networks, written here by its names, and files of their weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from gptfl_jax import models

CLASSES = 7


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after, track_running_stats=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after, track_running_stats=False)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        short = x[:, :, :: self.stride, :: self.stride]
        pads = (0, 0, 0, 0, self.pad, self.pad)
        return (y + nn.functional.pad(short, pads)).relu()


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16, track_running_stats=False)
        before = 16
        for stage, after in enumerate((16, 32, 64)):
            blocks = [
                Block(before if not i else after, after, 2 if stage and not i else 1)
                for i in range(3)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            before = after
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.linear(x.mean((2, 3)))


NORMS = {
    "instance": lambda width, side: nn.GroupNorm(width, width),
    "group": lambda width, side: nn.GroupNorm(4, width),
    "batch": lambda width, side: nn.BatchNorm2d(width),
    "layer": lambda width, side: nn.LayerNorm([width, side, side]),
}
ACTIVATIONS = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "swish": nn.SiLU,
}


class ConvNet(nn.Module):
    def __init__(self, norm, activation, pool, width=8, depth=3, side=20):
        super().__init__()
        layers, before = [], 3
        for _ in range(depth):
            layers += [
                nn.Conv2d(before, width, 3, padding=1),
                NORMS[norm](width, side),
                ACTIVATIONS[activation](),
                pool(2),
            ]
            before, side = width, side // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side**2, CLASSES)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def convnet(norm, activation, pool="average"):
    pools = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}
    options = {"norm": norm, "activation": activation, "pool": pool}
    given = {**options, "width": 8, "groups": 4}
    return "convnet", lambda: ConvNet(norm, activation, pools[pool]), given, 20


def channels_shuffled(x, groups):
    batch, channels, *sides = x.shape
    x = x.view(batch, groups, channels // groups, *sides)
    return x.transpose(1, 2).reshape(batch, channels, *sides)


class ShuffleUnit(nn.Module):
    def __init__(self, before, after, stride, groups):
        super().__init__()
        middle = after // 4
        self.groups = 1 if before == 24 else groups
        self.conv1 = nn.Conv2d(before, middle, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, after, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.stride = stride

    def forward(self, x):
        y = channels_shuffled(self.bn1(self.conv1(x)).relu(), self.groups)
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        if self.stride == 1:
            return (x + y).relu()
        return torch.cat([y, nn.functional.avg_pool2d(x, 3, 2, 1)], 1).relu()


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 24, 1, bias=False), nn.BatchNorm2d(24)
        before = 24
        for stage, (after, blocks) in enumerate(((200, 4), (400, 8), (800, 4))):
            units = [ShuffleUnit(before, after - before, 2, 2)]
            units += [ShuffleUnit(after, after, 1, 2) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*units))
            before = after
        self.classification_layer = nn.Linear(800, CLASSES)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return self.classification_layer(x.mean((2, 3)))


CASES = {
    "resnet 20": ("resnet", ResNet20, {"track_running_stats": False}, 32),
    "shufflenet": ("shufflenet", ShuffleNet, {}, 32),
    "convnet": convnet("instance", "relu"),
    "convnet, group": convnet("group", "swish", "max"),
    "convnet, batch": convnet("batch", "leaky_relu"),
    "convnet, layer": convnet("layer", "sigmoid"),
}


@pytest.mark.parametrize("case", CASES)
def test_files_of_the_original_give_its_logits(case, tmp_path):
    name, make, options, side = CASES[case]
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.ndim in (1, 3):  # biases and norms begin at 0 and 1
                value.add_(0.3 * torch.rand_like(value))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    model = models.create(name, CLASSES, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(x))
    variables, whole = models.load_weights(name, shapes, tmp_path / "weights.pth")
    assert whole
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
    with jax.default_matmul_precision("highest"):
        logits = jax.jit(model.apply)(variables, jnp.asarray(x))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
    # And they are written as they were read.
    written = models.released_weights(name, variables)
    for key, value in theirs.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written.pop(key), value.numpy())
    assert not written
