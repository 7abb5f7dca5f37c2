"""ResNets for CIFAR-10 (He et al., 2016, section 4.2) with the state dicts of akamaster/pytorch_resnet_cifar10."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ResNet", "resnet20", "resnet56"]


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A): every second pixel, new channels zero.

    The shortcut is spelled as a fixed 1 x 1 convolution, which is not part of the state dict.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        if inputs != outputs:
            shortcut = torch.zeros(outputs, inputs, 1, 1)
            shortcut[outputs // 4 : outputs // 4 + inputs, :, 0, 0] = torch.eye(inputs)
            self.register_buffer("shortcut", shortcut, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.conv2d(x, self.shortcut, stride=self.stride)
        return F.relu(y + x)


class ResNet(nn.Module):
    """(N, 3, 32, 32) to (N, 10): three stages of `blocks` blocks."""

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = Block(inputs, outputs, stride)
        return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20() -> ResNet:
    """Three blocks a stage."""
    return ResNet(3)


def resnet56() -> ResNet:
    """Nine blocks a stage."""
    return ResNet(9)
