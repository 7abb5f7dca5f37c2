"""MobileNetV1 0.25 (Howard et al., 2017; Keras weights) and MobileNetV2 1.0 (Sandler et al., 2018; BatchNorm folded).

Both come from TensorFlow: a convolution of stride 2 pads only below and on the right.
"""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["MobileNetV1", "MobileNetV2", "mobilenet_v1_025", "mobilenet_v2"]


class Layer(nn.Module):
    """Convolution (with a bias, or with BatchNorm) and ReLU6."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, groups=1, *, norm: bool, relu: bool = True):
        super().__init__()
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs, eps=1e-3)
        self.shrinks, self.norm, self.relu = stride == 2, norm, relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shrinks:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.conv(x)
        if self.norm:
            x = self.bn(x)
        return F.relu6(x) if self.relu else x


class MobileNetV1(nn.Module):
    """(N, 3, 224, 224) to (N, 1000): a stem and thirteen pairs of depthwise and pointwise convolutions."""

    def __init__(self, width: float):
        super().__init__()
        channels = [int(c * width) for c in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
        strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
        layers = [Layer(3, channels[0], 3, 2, norm=True)]
        for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True):
            layers += [
                Layer(inputs, inputs, 3, stride, inputs, norm=True),
                Layer(inputs, outputs, norm=True),
            ]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels[-1], 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class Bottleneck(nn.Module):
    """An inverted residual: expand, depthwise, project without activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        expand = [Layer(inputs, hidden, norm=False)] if expansion > 1 else []
        self.body = nn.Sequential(
            *expand,
            Layer(hidden, hidden, 3, stride, hidden, norm=False),
            Layer(hidden, outputs, norm=False, relu=False),
        )
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.skips else self.body(x)


class MobileNetV2(nn.Module):
    """(N, 3, 224, 224) to (N, 1001): output 0 is the background."""

    # fmt: off
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    # fmt: on
    """Expansion, channels, blocks and first stride of each stage."""

    def __init__(self):
        super().__init__()
        layers, inputs = [Layer(3, 32, 3, 2, norm=False)], 32
        for expansion, outputs, count, stride in self.STAGES:
            for block in range(count):
                layers.append(Bottleneck(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, Layer(inputs, 1280, norm=False))
        self.head = Layer(1280, 1001, norm=False, relu=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3), keepdim=True)).flatten(1)


def mobilenet_v1_025() -> MobileNetV1:
    """MobileNetV1 at a quarter of the width."""
    return MobileNetV1(0.25)


def mobilenet_v2() -> MobileNetV2:
    """MobileNetV2 at full width."""
    return MobileNetV2()
