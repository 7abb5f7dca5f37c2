"""What quantizes the image: the preprocessing takes it, or a table of the pixels."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from ..arch.graph import Preprocessing
from .calibrate import Range
from .fake_quantize import BIPOLAR
from .floatgraph import Node
from .forms import ALL_CODES, SIXTEEN_BITS, Codes, Raw, Unary
from .onnx_dialects import Refused
from .prescribed import bits_of

if TYPE_CHECKING:
    from .imported import Importer

__all__ = ["quantized_image"]


def quantized_image(importer: Importer, node: Node, form: Raw, found: Range, rounding: str) -> Codes:
    """The input tensor of an image that a `quant` node reads."""
    if "input" in importer.tensors:
        raise Refused("quantizes the image in a second way", "quantize the image once")
    if (form.scale == 0).any():
        raise Refused("loses a channel of the image: its factor is 0", "remove the channel")
    if found.hi - found.lo > 255:
        raise Refused(f"quantizes the image to {found.lo}..{found.hi}", SIXTEEN_BITS[1])
    old, shape = importer.preprocessing, importer.graph.input_shape
    mean, std = np.array(old.mean), np.array(old.std)
    if rounding == "ROUND":
        importer.preprocessing = dataclasses.replace(
            old,
            mean=tuple(map(float, mean - form.shift * std / form.scale)),
            std=tuple(map(float, std / form.scale)),
        )
        ends = [
            np.rint(
                (pixel - np.array(importer.preprocessing.mean)) / importer.preprocessing.std / found.scale
            )
            + found.zero_point
            for pixel in (0.0, old.raw_max * old.scale)
        ]
        bits = bits_of(found)
        full = found.lo == -(1 << bits - 1) and found.hi == (1 << bits - 1) - 1
        if full or found.lo <= np.min(ends) <= np.max(ends) <= found.hi:
            return importer.declare("input", found, shape)
        image = importer.declare("input", dataclasses.replace(found, lo=-128, hi=127), shape)
        return importer.table(Unary(image, image.real, shape), found, rounding, node.name)
    slope, start = old.scale * form.scale / std, form.shift - form.scale * mean / std
    if rounding == BIPOLAR and _only_weighted(importer, node.name):
        pixels = np.arange(int(old.raw_max) + 1)[:, None] * slope + start
        if np.abs(pixels).min() > 1e-5 * np.abs(pixels).max():  # no rounding of float32 decides
            return _signs(importer, old, form, found.scale, float(np.abs(pixels).min()))
    if np.ptp(slope) or np.ptp(start) or old.raw_max > 255:
        raise Refused(
            f"quantizes the image by {rounding} with several channels' factors",
            "use pixels 0..255 with the same mean and deviation for all channels",
        )
    importer.preprocessing = dataclasses.replace(old, mean=(0.0,) * len(mean), std=(1.0,) * len(std))
    image = importer.declare("input", Range(old.scale, -128, -128, 127), shape)
    pixels = ((ALL_CODES + 128) * old.scale - mean[0]) / std[0]
    values = pixels.astype(np.float32) * np.float32(form.scale[0]) + np.float32(form.shift[0])
    return importer.table(Unary(image, values, shape), found, rounding, node.name)


def _only_weighted(importer: Importer, name: str) -> bool:
    """Whether only linear layers and convolutions without padding read a value."""
    readers = [node for node in importer.graph.nodes if name in node.inputs]
    return bool(readers) and all(
        node.kind == "linear" or (node.kind == "conv" and not any(node.attrs["padding"])) for node in readers
    )


def _signs(importer: Importer, old: Preprocessing, form: Raw, scale: float, least: float) -> Codes:
    """The signs of an image whose pixels are at least `least` away from zero, as the codes -8 and 7 that everything
    beyond them saturates to; their readers' constants take the half step between the two."""
    step = scale * 2 / 15
    gain = form.scale * (9 * step / least)
    mean, std = np.array(old.mean), np.array(old.std)
    importer.preprocessing = dataclasses.replace(
        old,
        mean=tuple(map(float, mean - form.shift * std / form.scale)),
        std=tuple(map(float, std / gain)),
    )
    codes = importer.declare("input", Range(step, 0, -8, 7), importer.graph.input_shape)
    return dataclasses.replace(codes, range=Range(step, -0.5, -8, 7))
