"""The networks of all workloads in torch, channels first."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WORKLOADS = ("w1", "w2", "w3", "w4", "w5")


def make(workload: str, num_classes: int) -> nn.Module:
    """The network of a workload, as `benchmarks.workloads` has it in Flax."""
    match workload:
        case "w1":
            return cnn(num_classes)
        case "w2":
            return convnet(num_classes)
        case "w3":
            return ResNet(num_classes, 16, nn.BatchNorm2d)
        case "w4":
            return ConvGRU(num_classes)
        case "w5":
            return ResNet(num_classes, 64, lambda channels: nn.GroupNorm(8, channels))
    raise ValueError(f"{workload}: takes one of {', '.join(WORKLOADS)}")


def channels_first(x: np.ndarray) -> torch.Tensor:
    """Examples [batch, ..., channels] as torch has them."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def cnn(num_classes: int) -> nn.Module:
    """`gptfl_jax.models.cnn` for 28x28 pictures of one channel."""
    layers, channels = [], 1
    for features in (32, 64):
        layers += [nn.Conv2d(channels, features, 5, padding=2), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
        channels = features
    layers += [nn.Flatten(), nn.Linear(7 * 7 * channels, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, num_classes))


def convnet(num_classes: int) -> nn.Module:
    """`gptfl_jax.models.convnet` for 32x32 pictures of three channels."""
    layers, channels = [], 3
    for _ in range(3):
        layers += [nn.Conv2d(channels, 128, 3, padding=1), nn.GroupNorm(128, 128)]
        layers += [nn.ReLU(), nn.AvgPool2d(2)]
        channels = 128
    layers += [nn.Flatten(), nn.Linear(4 * 4 * channels, num_classes)]
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut without parameters."""

    def __init__(self, channels, features, stride, norm):
        super().__init__()
        self.conv0 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm0 = norm(features)
        self.conv1 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm1 = norm(features)
        new = features - channels
        self.stride, self.pad = stride, (0, 0, 0, 0, new // 2, new - new // 2)

    def forward(self, x):
        y = F.relu(self.norm0(self.conv0(x)))
        y = self.norm1(self.conv1(y))
        shortcut = x
        if self.stride > 1:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], self.pad)
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """`gptfl_jax.models.resnet` of depth 20."""

    def __init__(self, num_classes, width, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width)
        blocks, channels = [], width
        for stage in range(3):
            for i in range(3):
                stride = 2 if stage and not i else 1
                blocks.append(BasicBlock(channels, width * 2**stage, stride, norm))
                channels = width * 2**stage
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x):
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.classifier(x.mean((2, 3)))


class ConvGRU(nn.Module):
    """`gptfl_jax.models.audio_conv_rnn` over 128 bands."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(128, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(64, 128, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Dropout(0.1),
        )
        self.rnn = nn.GRU(128, 128, batch_first=True, bidirectional=True)
        self.dense = nn.Sequential(
            nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, num_classes)
        )

    def forward(self, x):
        states, _ = self.rnn(self.conv(x).transpose(1, 2))
        return self.dense(states.mean(1))
