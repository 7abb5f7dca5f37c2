"""Layers: convolution, linear, normalization.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import torch

from .affine import affine
from .operands import as_pair, image_view, need_constant, need_view, padded_node, taint
from .orders import by_position
from .views import Draft, Unsupported, View

__all__ = ["batch_norm", "conv2d", "convolution", "layer_norm", "linear", "native_layer_norm"]


def conv2d(call, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    weight_path, weight = weight, need_constant(weight, "the convolution's weight")
    outputs, _, kh, kw = weight.shape
    dilation = tuple(
        step if extent > 1 else 1 for extent, step in zip((kh, kw), as_pair(dilation), strict=True)
    )
    if isinstance(padding, str):
        total = (dilation[0] * (kh - 1), dilation[1] * (kw - 1)) if padding == "same" else (0, 0)
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        ph, pw = as_pair(padding)
        padding = (ph, ph, pw, pw)
    source, border = padded_node(call, x)
    padding = tuple(a + b for a, b in zip(padding, border, strict=True))
    bias = torch.zeros(outputs) if bias is None else need_constant(bias, "the convolution's bias")
    shape = (*call.shape[2:], outputs)
    draft = Draft(
        kind="conv",
        path=call.name("conv", weight_path),
        inputs=(source,),
        shape=shape,
        params={"weight": weight.permute(0, 2, 3, 1).contiguous(), "bias": bias},
        attrs={"stride": as_pair(stride), "padding": padding, "groups": groups, "dilation": dilation}
        | taint(source),
    )
    return image_view(call, draft)


def convolution(call, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or len(stride) != 2:
        raise Unsupported("only ordinary two-dimensional convolution has hardware", "use conv2d")
    return conv2d(call, x, weight, bias, stride, padding, dilation, groups)


def linear(call, x, weight, bias=None):
    original, weight = weight, need_constant(weight, "the linear layer's weight")
    outputs, width = weight.shape
    source, positions, rows = by_position(need_view(x), width, call.batch, subset=True)
    columns = torch.zeros(outputs, source.channels)
    columns[:, rows] = weight
    draft = Draft(
        kind="linear",
        path=call.name("linear", original),
        inputs=(source,),
        shape=(*source.shape[:-1], outputs),
        params={
            "weight": columns,
            "bias": torch.zeros(outputs) if bias is None else need_constant(bias, "the linear layer's bias"),
        },
        attrs=taint(source),
    )
    return View(draft, (positions[:, None] * outputs + torch.arange(outputs)).reshape(call.shape))


def layer_norm(call, x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    if len(normalized_shape) != 1:
        raise Unsupported(f"normalizes over {len(normalized_shape)} axes", "normalize over the channels only")
    (width,) = normalized_shape
    source, positions, rows = by_position(need_view(x), width, call.batch)
    gamma, beta = torch.empty(width), torch.empty(width)
    gamma[rows] = torch.ones(width) if weight is None else need_constant(weight, "gamma")
    beta[rows] = torch.zeros(width) if bias is None else need_constant(bias, "beta")
    draft = Draft(
        kind="layernorm",
        path=call.name("layernorm", weight),
        inputs=(source,),
        shape=source.shape,
        params={"gamma": gamma, "beta": beta},
        attrs={"eps": float(eps)} | taint(source),
    )
    return View(draft, (positions[:, None] * width + rows).reshape(call.shape))


def native_layer_norm(call, x, normalized_shape, weight, bias, eps):
    return [layer_norm(call, x, normalized_shape, weight, bias, eps), None, None]


def batch_norm(call, x, weight, bias, mean, variance, momentum, eps):
    mean, variance = need_constant(mean, "the mean"), need_constant(variance, "the variance")
    scale = torch.rsqrt(variance.double() + eps)
    if weight is not None:
        scale = scale * need_constant(weight, "gamma")
    shift = -mean * scale
    if bias is not None:
        shift = shift + need_constant(bias, "beta")
    view = need_view(x)
    shape = (1, -1, *[1] * (view.index.dim() - 2))
    result = affine(view, scale.reshape(shape), shift.reshape(shape), call.batch, call.name("batchnorm"))
    return [result, None, None]
