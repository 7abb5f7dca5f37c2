"""Published models at full size: plain torch modules whose state dicts are those of the published weights.

Weights and images are not part of the project; `CATALOGUE` names them relative to the folder of the environment
variable TERRAZZO_DATA.
"""

import dataclasses
from collections.abc import Callable

from torch import nn

from .deit import deit_tiny
from .mobilenet import mobilenet_v1_025, mobilenet_v2
from .resnet import resnet20, resnet56

__all__ = ["CATALOGUE", "Entry"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALVES = ((0.5,) * 3, (0.5,) * 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A model, where its weights and images are, and what its input and output mean."""

    build: Callable[[], nn.Module]
    weights: str
    shape: tuple[int, int, int]
    """(H, W, C) of one image."""
    resize: int | None
    """Shorter side of an image file before the centre crop; None where images have the model's size."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of RGB values 0..1."""
    images: str
    """Labelled images to measure on: a folder with labels.csv, or an .npz file."""
    calibration: str | None
    """Images of their own to calibrate on; None where `images` must be split."""
    first_class: int = 0
    """Output channel of label 0."""


def _imagenet(build, weights, statistics, first_class=0):
    mean, std = statistics
    return Entry(
        build=build,
        weights=f"models/{weights}.safetensors",
        shape=(224, 224, 3),
        resize=256,
        mean=mean,
        std=std,
        images="imagenet",
        calibration=None,
        first_class=first_class,
    )


def _cifar(build, weights):
    mean, std = _IMAGENET
    return Entry(
        build=build,
        weights=f"models/{weights}.safetensors",
        shape=(32, 32, 3),
        resize=None,
        mean=mean,
        std=std,
        images="cifar10/test500.npz",
        calibration="cifar10/train2000.npz",
    )


CATALOGUE = {
    "deit-tiny": _imagenet(deit_tiny, "deit_tiny_patch16_224", _IMAGENET),
    "mobilenet-v1": _imagenet(mobilenet_v1_025, "mobilenet_v1_025_224", _HALVES),
    "mobilenet-v2": _imagenet(mobilenet_v2, "mobilenet_v2_224", _HALVES, first_class=1),
    "resnet20": _cifar(resnet20, "resnet20_cifar10"),
    "resnet56": _cifar(resnet56, "resnet56_cifar10"),
}
