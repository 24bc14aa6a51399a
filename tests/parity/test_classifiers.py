"""The classifiers and their training, against the same networks written in PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from gptfl_jax import models, training

CLASSES = 10


class FlattenLast(nn.Module):
    """Flattens as we do, with the channels last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1).flatten(1)


def convnet(channels, side, norm):
    layers = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, 128, 3, padding=1)]
        layers += {
            "instance": [nn.InstanceNorm2d(128, affine=True)],
            "group": [nn.GroupNorm(32, 128)],
            "none": [],
        }[norm]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        channels = 128
    features = 128 * (side // 8) ** 2
    return nn.Sequential(*layers, FlattenLast(), nn.Linear(features, CLASSES))


def cnn(channels, side):
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(FlattenLast(), nn.Linear(64 * (side // 4) ** 2, 512), nn.ReLU()),
        nn.Linear(512, CLASSES),
    )


def lenet(channels, side, padding):
    features = 16 * ((side + 2 * padding - 4) // 2 // 2 - 2) ** 2
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5, padding=padding), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, CLASSES),
    )


def mlp(inputs):
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, 30), nn.ReLU(), nn.Linear(30, 20)),
        *(nn.ReLU(), nn.Linear(20, CLASSES)),
    )


def norm2d(kind, channels):
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(8, channels)


class BasicBlock(nn.Module):
    def __init__(self, before, features, stride, norm):
        super().__init__()
        self.stride, self.pad = stride, (features - before) // 2
        self.conv0 = nn.Conv2d(before, features, 3, stride, 1, bias=False)
        self.norm0 = norm2d(norm, features)
        self.conv1 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1 = norm2d(norm, features)

    def forward(self, x):
        y = self.norm1(self.conv1(self.norm0(self.conv0(x)).relu()))
        x = x[:, :, :: self.stride, :: self.stride]
        return (y + nn.functional.pad(x, (0, 0, 0, 0, self.pad, self.pad))).relu()


class ResNet(nn.Module):
    def __init__(self, channels, depth, norm):
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.norm = norm2d(norm, 16)
        before, blocks = 16, []
        for stage in range(3):
            for i in range((depth - 2) // 6):
                stride = 2 if stage and not i else 1
                blocks.append(BasicBlock(before, 16 * 2**stage, stride, norm))
                before = 16 * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(64, CLASSES)

    def forward(self, x):
        x = self.blocks(self.norm(self.conv(x)).relu())
        return self.classifier(x.mean((2, 3)))


def layers_in_order(name, params, stats):
    """Our layers in the order of torch's `parameters()`, as (params, batch_stats)."""
    if name != "resnet":
        order = sorted(
            params,
            key=lambda k: (k == "classifier", k.startswith(("fc", "dense")), k[-1], k),
        )
        return [(params[key], None) for key in order]
    layers = [(params["conv"], None), norm_of(params["norm"], stats and stats["norm"])]
    for block in sorted(key for key in params if key.startswith("stage")):
        for i in range(2):
            norm = f"norm{i}"
            layers += [
                (params[block][f"conv{i}"], None),
                norm_of(params[block][norm], stats and stats[block][norm]),
            ]
    return [*layers, (params["classifier"], None)]


def norm_of(params, stats):
    (kind,) = params
    return params[kind], stats and stats[kind]


def to_torch(array):
    array = torch.from_numpy(np.array(array))
    if array.ndim == 4:
        return array.permute(3, 2, 0, 1)
    return array.T if array.ndim == 2 else array


def load(module, name, variables):
    """Copies our variables into the torch module."""
    layers = layers_in_order(name, variables["params"], variables.get("batch_stats"))
    theirs = [m for m in module.modules() if list(m.parameters(recurse=False))]
    assert len(theirs) == len(layers)
    with torch.no_grad():
        for layer, (params, stats) in zip(theirs, layers, strict=True):
            weight = params["kernel"] if "kernel" in params else params["scale"]
            layer.weight.copy_(to_torch(weight))
            if "bias" in params:
                layer.bias.copy_(to_torch(params["bias"]))
            if stats is not None:
                layer.running_mean.copy_(to_torch(stats["mean"]))
                layer.running_var.copy_(to_torch(stats["var"]))


def gradients_of(module):
    layers = [m for m in module.modules() if list(m.parameters(recurse=False))]
    return [p.grad for layer in layers for p in layer.parameters(recurse=False)]


def flat(name, gradient):
    """Our gradient as torch lists its own: weight, then bias, layer by layer."""
    result = []
    for params, _ in layers_in_order(name, gradient, None):
        result.append(to_torch(params["kernel" if "kernel" in params else "scale"]))
        if "bias" in params:
            result.append(to_torch(params["bias"]))
    return result


def assert_close(ours, theirs, tolerance):
    """Within `tolerance` of the largest value."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    scale = max(np.abs(theirs).max(), 1e-3)
    assert np.abs(ours - theirs).max() <= tolerance * scale


CASES = [
    ("convnet", {}, (32, 32, 3), lambda: convnet(3, 32, "instance")),
    ("convnet", {"norm": "group"}, (16, 16, 1), lambda: convnet(1, 16, "group")),
    ("convnet", {"norm": "none"}, (16, 16, 3), lambda: convnet(3, 16, "none")),
    ("cnn", {}, (28, 28, 1), lambda: cnn(1, 28)),
    ("lenet", {}, (28, 28, 1), lambda: lenet(1, 28, 2)),
    ("lenet", {"padding": 0}, (32, 32, 3), lambda: lenet(3, 32, 0)),
    ("mlp", {"hidden": (30, 20)}, (6, 5, 3), lambda: mlp(90)),
    (
        *("logistic_regression", {}, (6, 5, 3)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(90, CLASSES)),
    ),
    ("resnet", {"depth": 14}, (16, 16, 3), lambda: ResNet(3, 14, "batch")),
    (
        "resnet",
        {"depth": 8, "norm": "group"},
        (16, 16, 3),
        lambda: ResNet(3, 8, "group"),
    ),
]


@pytest.mark.parametrize(("name", "options", "shape", "make"), CASES)
def test_outputs_gradients_and_statistics(name, options, shape, make):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(8, *shape)).astype(np.float32)
    labels = rng.integers(0, CLASSES, 8).astype(np.int32)
    learner = training.make_learner(
        models.create(name, CLASSES, **options),
        training.example_of(inputs),
        label_smoothing=0.1,
    )
    variables = learner.init(jax.random.key(0))
    # Away from the initial ones and zeros, so that no parameter is idle.
    keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(variables)))
    keys = jax.tree.unflatten(jax.tree.structure(variables), list(keys))
    variables = jax.tree.map(
        lambda x, key: x + 0.1 * jax.random.uniform(key, x.shape), variables, keys
    )
    module = make()
    load(module, name, variables)
    ours, theirs = training.number_of_parameters(variables), module.parameters()
    assert ours == sum(p.numel() for p in theirs)

    pixels = torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()
    batch = training.Batch(inputs, labels, np.ones(8, np.float32))

    def loss_of(params):
        return learner.loss({**variables, "params": params}, batch, jax.random.key(0))

    with jax.default_matmul_precision("highest"):
        module.eval()
        logits = jax.jit(learner.predict)(variables, inputs)
        assert_close(logits, module(pixels), 1e-4)
        module.train()
        (loss, state), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
            variables["params"]
        )
    target = torch.from_numpy(labels).long()
    their_loss = nn.functional.cross_entropy(
        module(pixels), target, label_smoothing=0.1
    )
    their_loss.backward()
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-4)
    for ours, theirs in zip(flat(name, gradient), gradients_of(module), strict=True):
        assert_close(ours, theirs, 1e-3)
    if state:
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        layers = layers_in_order(name, variables["params"], state["batch_stats"])
        updated = [stats for _, stats in layers if stats is not None]
        for stats, norm in zip(updated, norms, strict=True):
            assert_close(stats["mean"], norm.running_mean, 1e-4)
            assert_close(stats["var"], norm.running_var, 1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizers_and_cosine_are_those_of_torch(name):
    rng = np.random.default_rng(0)
    start = rng.normal(size=5).astype(np.float32)
    gradients = rng.normal(size=(12, 5)).astype(np.float32)
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    if name == "sgd":
        theirs = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.05)
    else:
        theirs = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 12)
    for gradient in gradients:
        weight.grad = torch.from_numpy(2 * gradient)
        nn.utils.clip_grad_norm_([weight], 3.0)
        theirs.step()
        scheduler.step()

    ours = training.make_optimizer(
        name,
        training.make_schedule("cosine", 0.1, steps=12),
        momentum=0.9,
        weight_decay=0.05 if name == "sgd" else 0.9,
        clip_norm=3.0,
    )
    params, state = jnp.asarray(start), ours.init(jnp.asarray(start))
    for gradient in gradients:
        updates, state = ours.update(jnp.asarray(2 * gradient), state, params)
        params = params + updates
    np.testing.assert_allclose(params, weight.detach().numpy(), rtol=1e-4, atol=1e-5)
