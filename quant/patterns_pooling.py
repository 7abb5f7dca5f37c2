"""Pooling, and reductions over pixels or tokens.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .moves import choose_positions, reshaped
from .operands import Call, Value, as_pair, image_node, image_view, need_view, padded_node, taint
from .orders import dense
from .patterns_elementwise import scaled
from .views import Draft, Unsupported, View

__all__ = ["adaptive_pool2d", "amax", "avg_pool2d", "max_pool2d", "mean", "summed"]


def max_pool2d(call, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    if as_pair(dilation) != (1, 1):
        raise Unsupported(f"dilation must be 1, not {as_pair(dilation)}", "pool without dilation")
    return _pool(call, "maxpool", x, kernel_size, stride, padding)


def avg_pool2d(
    call,
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    kernel = as_pair(kernel_size)
    if ceil_mode and as_pair(padding) == (0, 0):  # a window of the whole image counts its pixels alone
        sizes = need_view(x).index.shape[2:]
        kernel = tuple(
            min(k, size) if out == 1 else k
            for k, size, out in zip(kernel, sizes, call.shape[2:], strict=True)
        )
        stride = stride or kernel_size
    if as_pair(padding) != (0, 0) and not count_include_pad:
        raise Unsupported("averages over fewer pixels at the border", "set count_include_pad=True")
    if divisor_override not in (None, math.prod(kernel)):
        raise Unsupported("divides by another number than its window's", "remove divisor_override")
    return _pool(call, "avgpool", x, kernel, stride, padding)


def _pool(call: Call, kind: str, x: Value, kernel, stride, padding) -> View:
    view = need_view(x)
    source, border = (
        padded_node(call, x) if kind == "avgpool" else (image_node(call, view), (0, 0, 0, 0))
    )  # a maximum sees the zeros of the border, an average's own padding is zeros
    kernel = as_pair(kernel)
    stride, pads = as_pair(stride or kernel), as_pair(padding)
    windows = []
    for axis in (0, 1):
        span = (call.shape[2 + axis] - 1) * stride[axis] + kernel[axis]
        before = pads[axis] + border[2 * axis]
        extent = source.shape[axis] + border[2 * axis] + border[2 * axis + 1] + 2 * pads[axis]
        if span > extent and kind == "avgpool":
            raise Unsupported(
                "pools windows that reach beyond the image", "set ceil_mode=False and pad instead"
            )
        windows += [before, max(span - before - source.shape[axis], 0)]
    attrs = {"kernel": kernel, "stride": stride, "padding": tuple(windows)} | taint(source)
    shape = (*call.shape[2:], source.channels)
    return image_view(
        call, Draft(kind=kind, path=call.name(kind), inputs=(source,), shape=shape, attrs=attrs)
    )


def adaptive_pool2d(kind: str) -> Callable:
    def pool(call, x, output_size):
        sizes, outputs = need_view(x).index.shape[2:], call.shape[2:]
        if any(size % output for size, output in zip(sizes, outputs, strict=True)):
            raise Unsupported(
                f"pools {tuple(sizes)} to {tuple(outputs)} with windows of several sizes", "use divisors"
            )
        kernel = tuple(size // output for size, output in zip(sizes, outputs, strict=True))
        if kernel == (1, 1):
            return x
        return _pool(call, kind, x, kernel, kernel, 0)

    return pool


def _reduced(call: Call, kind: str, x: Value, dims) -> View:
    """The mean or maximum over axes that run through positions: a pooling over windows of a gather of them."""
    view = dense(need_view(x), call.batch)
    base, axes = view.base, view.index.dim()
    dims = sorted(d % axes for d in ([dims] if isinstance(dims, int) else dims or range(axes)))
    kept = [d for d in range(axes) if d not in dims]
    groups = view.index.permute(*kept, *dims).reshape(math.prod(view.index.shape[d] for d in kept), -1)
    channel, image = groups[:, 0] % base.channels, torch.div(groups[:, 0], base.size, rounding_mode="floor")
    positions = torch.div(groups % base.size, base.channels, rounding_mode="floor").sort(dim=1).values
    again = (image[:, None] * base.size + positions * base.channels + channel[:, None]).sort(dim=1).values
    windows, window = torch.unique(positions, dim=0, return_inverse=True)
    if not torch.equal(again, groups.sort(dim=1).values) or windows.numel() * base.channels != base.size:
        raise Unsupported(
            "reduces something else than all pixels, all tokens or equal groups of them",
            "reduce over H and W, or over tokens",
            layout=True,
        )
    count, size = windows.shape
    index = ((image * count + window) * base.channels + channel).reshape(call.shape)
    if count > 1:
        base = choose_positions(base, windows.reshape(-1), (count, size, base.channels))
        kernel, shape = (1, size), (count, 1, base.channels)
    elif len(base.shape) == 3:
        kernel, shape = base.shape[:2], (1, 1, base.channels)
    elif kind == "avgpool":
        kernel, shape = (size, 1), (1, base.channels)
    else:
        base = reshaped(base, (size, 1, base.channels))
        kernel, shape = (size, 1), (1, 1, base.channels)
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)} | taint(base)
    return View(Draft(kind=kind, path=call.name(kind), inputs=(base,), shape=shape, attrs=attrs), index)


def mean(call, x, dim=None, keepdim=False, dtype=None):
    return _reduced(call, "avgpool", x, dim)


def summed(call, x, dim=None, keepdim=False, dtype=None):
    average = _reduced(call, "avgpool", x, dim)
    return scaled(call, average, torch.tensor(need_view(x).index.numel() / average.index.numel()))


def amax(call, x, dim=(), keepdim=False):
    return _reduced(call, "maxpool", x, dim)
