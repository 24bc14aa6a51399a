"""torchvision's classifiers, written here by its names, and files of their weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from federated import export
from gptfl_jax import artifacts, description, exports
from gptfl_jax.classifier import load_classifier
from gptfl_jax.description import Description
from gptfl_jax.models import mobilenet_v2, resnet_imagenet, shufflenet_v2, vgg, vit

CLASSES = 7


class Block(nn.Module):
    def __init__(self, before, width, stride, bottleneck):
        super().__init__()
        after = 4 * width if bottleneck else width
        if bottleneck:
            self.conv1 = nn.Conv2d(before, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, after, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(after)
        else:
            self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.bottleneck = bottleneck
        self.downsample = None
        if stride > 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.bottleneck:
            y = self.bn3(self.conv3(y.relu()))
        return (y + (x if self.downsample is None else self.downsample(x))).relu()


class ResNet(nn.Module):
    def __init__(self, blocks, bottleneck, width, stem="imagenet"):
        super().__init__()
        large = stem == "imagenet"
        self.conv1 = nn.Conv2d(
            3, width, *((7, 2, 3) if large else (3, 1, 1)), bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        before = width
        for stage, count in enumerate(blocks):
            layers = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                layers.append(Block(before, width * 2**stage, stride, bottleneck))
                before = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(before, CLASSES)

    def forward(self, x):
        x = self.pool(self.bn1(self.conv1(x)).relu())
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    def __init__(self, stages, width, hidden, norm=False):
        super().__init__()
        layers, before = [], 3
        for stage, count in enumerate(stages):
            for _ in range(count):
                after = width * 2 ** min(stage, 3)
                layers.append(nn.Conv2d(before, after, 3, padding=1))
                layers += [nn.BatchNorm2d(after)] if norm else []
                layers.append(nn.ReLU())
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)
        self.classifier = nn.Sequential(
            *(nn.Linear(49 * before, hidden), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout()),
            nn.Linear(hidden, CLASSES),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def conv_norm_relu(before, after, window, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(
            before, after, window, stride, window // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(after),
        nn.ReLU6(),
    )


class InvertedResidual(nn.Module):
    def __init__(self, before, after, stride, expansion):
        super().__init__()
        wide = before * expansion
        first = [conv_norm_relu(before, wide, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *first,
            conv_norm_relu(wide, wide, 3, stride, wide),
            nn.Conv2d(wide, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.adds = stride == 1 and before == after

    def forward(self, x):
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """At width 0.25, whose numbers of channels are worked out by hand."""

    def __init__(self):
        super().__init__()
        layers, before = [conv_norm_relu(3, 8, 3, 2)], 8
        for expansion, after, blocks, stride in (
            *((1, 8, 1, 1), (6, 8, 2, 2), (6, 8, 3, 2), (6, 16, 4, 2)),
            *((6, 24, 3, 1), (6, 40, 3, 2), (6, 80, 1, 1)),
        ):
            for i in range(blocks):
                stride_ = 1 if i else stride
                layers.append(InvertedResidual(before, after, stride_, expansion))
                before = after
        self.features = nn.Sequential(*layers, conv_norm_relu(before, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


def channels_shuffled(x):
    batch, channels, *sides = x.shape
    return x.view(batch, 2, channels // 2, *sides).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        half = after // 2
        self.stride = stride
        if stride == 2:
            self.branch1 = nn.Sequential(
                nn.Conv2d(before, before, 3, 2, 1, groups=before, bias=False),
                nn.BatchNorm2d(before),
                nn.Conv2d(before, half, 1, bias=False),
                nn.BatchNorm2d(half),
                nn.ReLU(),
            )
        self.branch2 = nn.Sequential(
            nn.Conv2d(before if stride == 2 else half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )

    def forward(self, x):
        if self.stride == 2:
            first, second = self.branch1(x), x
        else:
            first, second = x.chunk(2, 1)
        return channels_shuffled(torch.cat([first, self.branch2(second)], 1))


def conv_norm(before, after, *arguments):
    return nn.Sequential(
        nn.Conv2d(before, after, *arguments, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    )


class ShuffleNetV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = conv_norm(3, 24, 3, 2, 1)
        before = 24
        for stage, (after, blocks) in enumerate(((48, 4), (96, 8), (192, 4))):
            units = [
                ShuffleUnit(after if i else before, after, 1 if i else 2)
                for i in range(blocks)
            ]
            setattr(self, f"stage{stage + 2}", nn.Sequential(*units))
            before = after
        self.conv5 = conv_norm(before, 1024, 1)
        self.fc = nn.Linear(1024, CLASSES)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv1(x), 3, 2, 1)
        return self.fc(
            self.conv5(self.stage4(self.stage3(self.stage2(x)))).mean((2, 3))
        )


class EncoderBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(0.0),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    def __init__(self, depth, width, heads, tokens):
        super().__init__()
        self.pos_embedding = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        layers = {
            f"encoder_layer_{i}": EncoderBlock(width, heads) for i in range(depth)
        }
        self.layers = nn.Sequential()
        for name, layer in layers.items():
            self.layers.add_module(name, layer)
        self.ln = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x):
        return self.ln(self.layers(x + self.pos_embedding))


class VisionTransformer(nn.Module):
    def __init__(self, depth=2, width=192, heads=3, patch=8, side=32):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, width))
        self.conv_proj = nn.Conv2d(3, width, patch, patch)
        self.encoder = Encoder(depth, width, heads, (side // patch) ** 2 + 1)
        self.heads = nn.Sequential()
        self.heads.add_module("head", nn.Linear(width, CLASSES))

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.heads(self.encoder(x)[:, 0])


CASES = {
    "resnet 18": (resnet_imagenet, lambda: ResNet((2, 2, 2, 2), False, 8), 45),
    "resnet 34": (resnet_imagenet, lambda: ResNet((3, 4, 6, 3), False, 4), 64),
    "resnet 50": (resnet_imagenet, lambda: ResNet((3, 4, 6, 3), True, 4), 64),
    "resnet 18, cifar": (
        *(resnet_imagenet, lambda: ResNet((2, 2, 2, 2), False, 4, "cifar")),
        20,
    ),
    "vgg 11": (vgg, lambda: VGG((1, 1, 2, 2, 2), 4, 16), 32),
    "vgg 13 with norm": (vgg, lambda: VGG((2, 2, 2, 2, 2), 4, 16, True), 100),
    "vgg 16": (vgg, lambda: VGG((2, 2, 3, 3, 3), 4, 16), 224),
    "vgg 19 with norm": (vgg, lambda: VGG((2, 2, 4, 4, 4), 4, 16, True), 32),
    "mobilenet v2": (mobilenet_v2, MobileNetV2, 63),
    "shufflenet v2": (shufflenet_v2, ShuffleNetV2, 70),
    "vit": (vit, VisionTransformer, 32),
}


@pytest.mark.parametrize("case", CASES)
def test_files_pass_between_torch_and_jax(case, tmp_path):
    ours, make, side = CASES[case]
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.ndim == 1:  # biases and norms begin at 0 and 1
                value.add_(0.3 * torch.rand_like(value))
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    model, variables = ours.read_weights(tmp_path / "weights.pth")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    apply = jax.jit(model.apply)

    def compare(theirs, variables):
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).numpy()
        with jax.default_matmul_precision("highest"):
            logits = apply(variables, jnp.asarray(x))
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)
        return expected

    first = compare(theirs, variables)
    # Other weights, as after a federation, go to torch.
    variables = jax.tree.map(
        lambda leaf: np.asarray(leaf * rng.uniform(0.9, 1.1, leaf.shape), leaf.dtype),
        variables,
    )
    name = ours.__name__.rpartition(".")[2]
    example = jax.ShapeDtypeStruct(x.shape[1:], np.uint8)
    options = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.name not in ("num_classes", "parent", "name")
    }
    classes = tuple(map(str, range(CLASSES)))
    about = Description(name, options, classes, example)
    exports.write(tmp_path, about, variables)
    fresh = make().eval()
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert np.abs(compare(fresh, variables) - first).max() > 1e-3


def test_an_exported_run_goes_to_torch(tmp_path):
    about = Description(
        *("vgg", {"depth": 11, "width": 4, "hidden": 16}),
        tuple(map(str, range(CLASSES))),
        jax.ShapeDtypeStruct((32, 32, 3), np.uint8),
        *((0.5,) * 3, (0.25,) * 3),
    )
    variables = description.make_learner(about).init(jax.random.key(0))
    run = tmp_path / "federated" / "fedavg-random-s0"
    about.save(run)
    with artifacts.Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, {"variables": variables})
    output = tmp_path / "out"
    export.run(workdir=str(tmp_path), output=str(output), formats="torch")
    weights = torch.load(output / "pytorch_model.bin", weights_only=True)
    theirs = VGG((1, 1, 2, 2, 2), 4, 16).eval()
    theirs.load_state_dict(weights, strict=True)
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    scaled = (torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = theirs(scaled).softmax(1).numpy()
    found = load_classifier(output).probabilities(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)
