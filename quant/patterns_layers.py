"""Layers: convolution, linear, normalization, pooling, and the class token.

Functions named as ATen operators take their arguments after the `Call`, and return the operator's value.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .operands import Call, Value, as_pair, image_node, image_view, need_constant, need_view, taint
from .views import Draft, Unsupported, View, affine, by_position, dense, ordered

__all__ = [
    "adaptive_pool2d",
    "avg_pool2d",
    "batch_norm",
    "cat",
    "conv2d",
    "convolution",
    "layer_norm",
    "linear",
    "max_pool2d",
    "mean",
    "native_layer_norm",
    "pad",
]


def conv2d(call, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    weight_path, weight = weight, need_constant(weight, "the convolution's weight")
    outputs, _, kh, kw = weight.shape
    for extent, step in zip((kh, kw), as_pair(dilation), strict=True):
        if step != 1 and extent > 1:
            raise Unsupported(
                f"dilation must be 1, not {as_pair(dilation)}", "use a larger kernel or more convolutions"
            )
    if isinstance(padding, str):
        total = (kh - 1, kw - 1) if padding == "same" else (0, 0)
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        ph, pw = as_pair(padding)
        padding = (ph, ph, pw, pw)
    source = image_node(call, x)
    if source.kind == "pad":
        padding = tuple(a + b for a, b in zip(padding, source.attrs["padding"], strict=True))
        source = source.inputs[0]
    bias = torch.zeros(outputs) if bias is None else need_constant(bias, "the convolution's bias")
    shape = (*call.shape[2:], outputs)
    draft = Draft(
        kind="conv",
        path=call.name("conv", weight_path),
        inputs=(source,),
        shape=shape,
        params={"weight": weight.permute(0, 2, 3, 1).contiguous(), "bias": bias},
        attrs={"stride": as_pair(stride), "padding": padding, "groups": groups} | taint(source),
    )
    return image_view(call, draft)


def convolution(call, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or len(stride) != 2:
        raise Unsupported("only ordinary two-dimensional convolution has hardware", "use conv2d")
    return conv2d(call, x, weight, bias, stride, padding, dilation, groups)


def linear(call, x, weight, bias=None):
    original, weight = weight, need_constant(weight, "the linear layer's weight")
    outputs, width = weight.shape
    source, positions, rows = by_position(need_view(x), width, call.batch)
    columns = torch.empty_like(weight)
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
    if as_pair(padding) != (0, 0) and not count_include_pad:
        raise Unsupported("averages over fewer pixels at the border", "set count_include_pad=True")
    if divisor_override not in (None, math.prod(kernel)):
        raise Unsupported("divides by another number than its window's", "remove divisor_override")
    return _pool(call, "avgpool", x, kernel, stride, padding)


def _pool(call: Call, kind: str, x: Value, kernel, stride, padding) -> View:
    source = image_node(call, x)
    kernel = as_pair(kernel)
    stride, (ph, pw) = as_pair(stride or kernel), as_pair(padding)
    height, width = (
        (source.shape[axis] + 2 * pad - kernel[axis]) // stride[axis] + 1 for axis, pad in ((0, ph), (1, pw))
    )
    if (height, width) != call.shape[2:]:
        raise Unsupported("pools windows that reach beyond the image", "set ceil_mode=False and pad instead")
    attrs = {"kernel": kernel, "stride": stride, "padding": (ph, ph, pw, pw)} | taint(source)
    shape = (height, width, source.channels)
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


def mean(call, x, dim=None, keepdim=False, dtype=None):
    view = dense(need_view(x), call.batch)
    base, axes = view.base, view.index.dim()
    reduced = sorted(d % axes for d in ([dim] if isinstance(dim, int) else dim or range(axes)))
    kept = [d for d in range(axes) if d not in reduced]
    groups = view.index.permute(*kept, *reduced).reshape(math.prod(view.index.shape[d] for d in kept), -1)
    groups = groups.sort(dim=1).values
    positions = base.size // base.channels
    whole = groups[:, :1] + torch.arange(positions) * base.channels
    if groups.shape[1] != positions or not torch.equal(groups, whole):
        raise Unsupported(
            "averages over something else than all pixels or all tokens",
            "use mean over H and W, or over tokens",
        )
    index = (groups[:, 0] // base.size * base.channels + groups[:, 0] % base.channels).reshape(call.shape)
    image = len(base.shape) == 3
    kernel = base.shape[:2] if image else (positions, 1)
    shape = (1, 1, base.channels) if image else (1, base.channels)
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)} | taint(base)
    return View(
        Draft(kind="avgpool", path=call.name("avgpool"), inputs=(base,), shape=shape, attrs=attrs), index
    )


def pad(call, x, pad, *rest, **kwargs):
    mode = next((value for value in (*rest, *kwargs.values()) if isinstance(value, str)), "constant")
    value = next((v for v in (*rest, *kwargs.values()) if isinstance(v, int | float)), 0)
    if any(pad) and (mode != "constant" or value != 0 or len(pad) > 4 or min(pad) < 0):
        raise Unsupported(
            f"pads with mode {mode!r} and value {value}", "pad H and W with zeros before a convolution"
        )
    if not any(pad):
        return x
    left, right, top, bottom = [*pad, 0, 0][:4]
    source = image_node(call, x)
    height, width, channels = source.shape
    draft = Draft(
        kind="pad",
        path=call.name("pad"),
        inputs=(source,),
        shape=(height + top + bottom, width + left + right, channels),
        attrs={"padding": (top, bottom, left, right)} | taint(source),
    )
    return image_view(call, draft)


def cat(call, tensors, dim=0):
    views = [x for x in tensors if not isinstance(x, torch.Tensor)]
    bases = {need_view(x).base for x in views}
    if len(views) == len(tensors) and len(bases) == 1:
        return views[0].at(torch.cat([x.index for x in views], dim))
    axes = len(call.shape)
    if len(views) != 1 or views[0] is not tensors[-1] or axes != 3 or dim % axes == 2:
        raise Unsupported(
            "concatenates something else than constant tokens in front of the image's tokens",
            "put class tokens first: cat([token.expand(N, -1, -1), x], dim=1)",
        )
    order = (0, 1, 2) if dim % axes == 1 else (1, 0, 2)
    prefix = torch.cat([x.to(torch.float32).permute(order) for x in tensors[:-1]], dim=1)
    if not torch.equal(prefix, prefix[:1].expand_as(prefix)):
        raise Unsupported("the class token differs between images", "use one class token")
    index = views[0].index.permute(order)
    source = ordered(views[0].at(index), tuple(index.shape[1:]), call.batch, flat=True)
    draft = Draft(
        kind="tokens",
        path=call.name("tokens"),
        inputs=(source,),
        shape=(prefix.shape[1] + index.shape[1], index.shape[2]),
        params={"prefix": prefix[0].contiguous()},
        attrs=taint(source),
    )
    return View(draft, draft.view(call.batch).index.permute(order))
