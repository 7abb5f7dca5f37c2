"""ONNX operators as torch functions.

`OPERATORS[op](step, opset)` returns the function of the node's inputs, in ONNX's order and None where one is left
out, or raises `Refused`. Inputs that are known beforehand arrive as constants; those that give shapes, axes and
indices must be known. Semantics: the ONNX specification, opset 9 to 23.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from .fake_quantize import fake_quantize
from .onnx_dialects import Refused
from .onnx_file import Step

__all__ = ["OPERATORS"]

Function = Callable[..., object]


def _numbers(value: object) -> list[int]:
    if isinstance(value, torch.Tensor) or value is None:
        raise ValueError("shapes, axes and indices must not depend on the image")
    return [int(v) for v in np.asarray(value).reshape(-1)]


def _axes(step: Step, given: object) -> list[int] | None:
    """Axes of an attribute or an input."""
    if "axes" in step.attrs:
        return _numbers(step.attrs["axes"])
    return None if given is None else _numbers(given)


def _pads(
    step: Step, extent: tuple[int, int], kernel: list[int], stride: list[int], dilation: list[int]
) -> list[int]:
    """(left, right, top, bottom) as F.pad takes them."""
    mode = step.attrs.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        result: list[int] = []
        for size, k, s, d in zip(extent, kernel, stride, dilation, strict=True):
            total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
            small, large = total // 2, total - total // 2
            result = [*((small, large) if mode == "SAME_UPPER" else (large, small)), *result]
        return result
    top, left, bottom, right = step.attrs.get("pads") or (0, 0, 0, 0)
    return [left, right, top, bottom]


def _two(step: Step, name: str, default: int = 1) -> list[int]:
    value = list(step.attrs.get(name) or (default, default))
    if len(value) != 2:
        raise Refused(f"has {len(value)} axes of pixels", "use two-dimensional images")
    return value


def _conv(step: Step, opset: int) -> Function:
    stride, dilation, groups = _two(step, "strides"), _two(step, "dilations"), int(step.attrs.get("group", 1))

    def run(x, weight, bias=None):
        pads = _pads(step, x.shape[-2:], list(weight.shape[-2:]), stride, dilation)
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, weight, bias, stride, (pads[2], pads[0]), dilation, groups)
        return F.conv2d(F.pad(x, pads), weight, bias, stride, 0, dilation, groups)

    return run


def _max_pool(step: Step, opset: int) -> Function:
    kernel, stride, dilation = _two(step, "kernel_shape"), _two(step, "strides"), _two(step, "dilations")
    if len(step.outputs) > 1:
        raise Refused("returns indices", "use its first output alone")

    def run(x):
        pads = _pads(step, x.shape[-2:], kernel, stride, dilation)
        ceil = bool(step.attrs.get("ceil_mode"))
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.max_pool2d(x, kernel, stride, (pads[2], pads[0]), dilation, ceil)
        return F.max_pool2d(F.pad(x, pads, value=float("-inf")), kernel, stride, 0, dilation, ceil)

    return run


def _average_pool(step: Step, opset: int) -> Function:
    kernel, stride = _two(step, "kernel_shape"), _two(step, "strides")
    counted = bool(step.attrs.get("count_include_pad", 0))

    def run(x):
        pads = _pads(step, x.shape[-2:], kernel, stride, [1, 1])
        ceil = bool(step.attrs.get("ceil_mode"))
        if pads[0] == pads[1] and pads[2] == pads[3]:
            included = counted or not any(pads)
            return F.avg_pool2d(x, kernel, stride, (pads[2], pads[0]), ceil, included)
        if not counted:
            raise ValueError("averages over fewer pixels at one border")
        return F.avg_pool2d(F.pad(x, pads), kernel, stride, 0, ceil)

    return run


def _batch_norm(step: Step, opset: int) -> Function:
    if step.attrs.get("training_mode"):
        raise Refused("is in training mode", "export the model in eval mode")
    eps = float(step.attrs.get("epsilon", 1e-5))
    return lambda x, gamma, beta, mean, variance: F.batch_norm(x, mean, variance, gamma, beta, eps=eps)


def _gemm(step: Step, opset: int) -> Function:
    alpha, beta = float(step.attrs.get("alpha", 1)), float(step.attrs.get("beta", 1))

    def run(a, b, c=None):
        a = a.t() if step.attrs.get("transA") else a
        weight = b if step.attrs.get("transB") else b.t()
        weight = weight if alpha == 1 else weight * alpha
        c = c if c is None or beta == 1 else c * beta
        if c is None or c.numel() == weight.shape[0]:
            return F.linear(a, weight, None if c is None else c.reshape(-1))
        return F.linear(a, weight) + c

    return run


def _hard_sigmoid(step: Step, opset: int) -> Function:
    alpha, beta = float(step.attrs.get("alpha", 0.2)), float(step.attrs.get("beta", 0.5))
    if abs(alpha - 1 / 6) > 1e-4 or beta != 0.5:
        raise Refused(f"has alpha {alpha:g} and beta {beta:g}", "use alpha 1/6 and beta 1/2, as torch does")
    return F.hardsigmoid


def _gelu(step: Step, opset: int) -> Function:
    kind = step.attrs.get("approximate", "none")
    return lambda x: F.gelu(x, approximate=kind)


def _clip(step: Step, opset: int) -> Function:
    def run(x, low=None, high=None):
        low = step.attrs.get("min") if low is None else float(low)
        high = step.attrs.get("max") if high is None else float(high)
        return torch.clamp(x, low, high)

    return run


def _softmax(step: Step, opset: int) -> Function:
    axis = int(step.attrs.get("axis", -1 if opset >= 13 else 1))

    def run(x):
        if opset < 13 and axis not in (-1, x.dim() - 1):
            raise ValueError("normalizes several axes at once, as opsets before 13 do")
        return torch.softmax(x, axis)

    return run


def _layer_norm(step: Step, opset: int) -> Function:
    axis, eps = int(step.attrs.get("axis", -1)), float(step.attrs.get("epsilon", 1e-5))

    def run(x, gamma, beta=None):
        shape = x.shape[axis:]
        return F.layer_norm(
            x, shape, gamma.reshape(shape), None if beta is None else beta.reshape(shape), eps
        )

    return run


def _reshape(step: Step, opset: int) -> Function:
    def run(x, shape=None):
        wanted = _numbers(step.attrs.get("shape", shape))
        if not step.attrs.get("allowzero"):
            wanted = [x.shape[axis] if extent == 0 else extent for axis, extent in enumerate(wanted)]
        return x.reshape(wanted)

    return run


def _flatten(step: Step, opset: int) -> Function:
    axis = int(step.attrs.get("axis", 1))
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(step: Step, opset: int) -> Function:
    return lambda x: x.permute(step.attrs.get("perm") or tuple(reversed(range(x.dim()))))


def _squeeze(step: Step, opset: int) -> Function:
    def run(x, axes=None):
        axes = _axes(step, axes)
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    return run


def _unsqueeze(step: Step, opset: int) -> Function:
    def run(x, axes=None):
        axes = _axes(step, axes)
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def _split(step: Step, opset: int) -> Function:
    axis = int(step.attrs.get("axis", 0))

    def run(x, split=None):
        sizes = step.attrs.get("split") or (None if split is None else _numbers(split))
        if sizes is None:
            size = -(-x.shape[axis] // len(step.outputs))
            return list(x.split(size, axis))
        return list(x.split(list(sizes), axis))

    return run


def _slice(step: Step, opset: int) -> Function:
    def run(x, starts=None, ends=None, axes=None, steps=None):
        starts = _numbers(step.attrs.get("starts", starts))
        ends = _numbers(step.attrs.get("ends", ends))
        axes = step.attrs.get("axes") or (None if axes is None else _numbers(axes))
        strides = [1] * len(starts) if steps is None else _numbers(steps)
        for axis, start, end, stride in zip(axes or range(len(starts)), starts, ends, strides, strict=True):
            if stride < 0:
                raise ValueError("counts backwards")
            size = x.shape[axis]
            chosen = [slice(None)] * x.dim()
            chosen[axis] = slice(*slice(start, max(min(end, size), -size - 1), stride).indices(size))
            x = x[tuple(chosen)]
        return x

    return run


def _gather(step: Step, opset: int) -> Function:
    axis = int(step.attrs.get("axis", 0))

    def run(x, index):
        numbers = _numbers(index)
        if np.ndim(index) == 0:
            return x.select(axis, numbers[0])
        taken = torch.index_select(x, axis, torch.tensor([n % x.shape[axis] for n in numbers]))
        place = axis % x.dim()
        return taken.reshape(*x.shape[:place], *np.shape(index), *x.shape[place + 1 :])

    return run


def _pad(step: Step, opset: int) -> Function:
    mode = step.attrs.get("mode", "constant")
    if mode != "constant":
        raise Refused(f"pads by {mode}", "pad with zeros")

    def run(x, pads=None, value=None, axes=None):
        pads = _numbers(step.attrs.get("pads", pads))
        axes = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _numbers(axes)]
        before, after = [0] * x.dim(), [0] * x.dim()
        for place, axis in enumerate(axes):
            before[axis], after[axis] = pads[place], pads[place + len(axes)]
        flat = [width for axis in reversed(range(x.dim())) for width in (before[axis], after[axis])]
        while len(flat) > 2 and flat[-1] == flat[-2] == 0:
            flat = flat[:-2]
        number = step.attrs.get("value", 0.0) if value is None or np.size(value) == 0 else value
        return F.pad(x, flat, value=float(number)) if any(flat) else x

    return run


def _concat(step: Step, opset: int) -> Function:
    return lambda *parts: torch.cat(parts, int(step.attrs["axis"]))


def _reduce(function: Function) -> Callable[[Step, int], Function]:
    def build(step: Step, opset: int) -> Function:
        keep = bool(step.attrs.get("keepdims", 1))

        def run(x, axes=None):
            axes = _axes(step, axes)
            return function(x, axes or list(range(x.dim())), keep)

        return run

    return build


def _expand(step: Step, opset: int) -> Function:
    return lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, _numbers(shape)))


def _depth_to_space(step: Step, opset: int) -> Function:
    if step.attrs.get("mode", "DCR") != "CRD":
        raise Refused("has mode DCR", "use mode CRD, as torch's PixelShuffle does")
    return lambda x: F.pixel_shuffle(x, int(step.attrs["blocksize"]))


def _cast(step: Step, opset: int) -> Function:
    if int(step.attrs["to"]) not in (1, 10, 11):
        raise Refused("casts an activation to integers", "quantize with QuantizeLinear")
    return lambda x: x.clone()


def _quant(step: Step, opset: int) -> Function:
    a = step.attrs
    return lambda x: fake_quantize(x, a["scale"], a["zero_point"], a["lo"], a["hi"], a["rounding"])


def _plain(function: Function) -> Callable[[Step, int], Function]:
    return lambda step, opset: function


OPERATORS: dict[str, Callable[[Step, int], Function]] = {
    "Add": _plain(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Div": _plain(torch.div),
    "Dropout": _plain(lambda x, *_: x.clone()),
    "Erf": _plain(torch.erf),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(lambda x: F.adaptive_avg_pool2d(x, 1)),
    "GlobalMaxPool": _plain(lambda x: torch.amax(x, (2, 3), True)),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(F.hardswish),
    "Identity": _plain(lambda x: x.clone()),
    "LayerNormalization": _layer_norm,
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pad": _pad,
    "Pow": _plain(torch.pow),
    "Quant": _quant,
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _plain(F.relu),
    "Reshape": _reshape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _plain(lambda *parts: sum(parts[1:], start=parts[0])),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""One function for every operator that is translated."""
