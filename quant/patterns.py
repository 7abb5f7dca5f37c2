"""What each core ATen operator becomes in the float graph.

`HANDLERS[name](call, *args, **kwargs)` receives the operator's arguments with values in place of graph nodes: `View`
and `Scores` for what depends on the image, plain tensors for parameters and constants. It returns the operator's
value, or raises `Unsupported`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from .views import Draft, Scores, Unsupported, View, affine, by_position, dense, ordered

__all__ = ["HANDLERS", "MOVEMENTS", "PASS_THROUGH", "SHAPE_ONLY", "SUPPORTED", "Call", "remedy_for"]

Value = View | Scores | torch.Tensor
Pair = tuple[int, int]

MOVEMENTS = frozenset(
    [
        "view",
        "_unsafe_view",
        "reshape",
        "permute",
        "transpose",
        "t",
        "swapaxes",
        "movedim",
        "unsqueeze",
        "squeeze",
        "select",
        "slice",
        "split",
        "chunk",
        "split_with_sizes",
        "tensor_split",
        "unbind",
        "expand",
        "flatten",
        "unflatten",
        "index_select",
        "narrow",
        "flip",
        "roll",
        "stack",
        "broadcast_to",
        "numpy_T",
        "mT",
        "pixel_shuffle",
        "pixel_unshuffle",
        "repeat",
    ]
)
"""Operators that only move data: they run as themselves on element numbers."""

PASS_THROUGH = frozenset(
    ["clone", "contiguous", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "identity", "positive"]
)

SHAPE_ONLY = frozenset(["new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"])
"""Operators that make constants of an activation's shape."""

SUPPORTED = (
    "conv2d, linear, matmul by a weight, batch_norm, layer_norm, scaled_dot_product_attention or its softmax "
    "spelling, relu, relu6, gelu, silu, sigmoid, tanh, hardswish, hardsigmoid, add, class tokens by cat, max_pool2d, avg_pool2d, mean"
)


@dataclasses.dataclass(frozen=True)
class Call:
    """Where an operator stands, for handlers."""

    batch: int
    path: str
    """Module path, for findings."""
    op: str
    leaf: bool
    """Whether the module is one of torch's own layers, so that its path names the node."""
    shape: tuple[int, ...]
    """Of the (first) output in torch."""
    names: dict[int, str]
    """Parameter path by the id of a constant."""

    def name(self, kind: str, weight: torch.Tensor | None = None) -> str:
        """The wanted name of a node: the layer's own path, else the weight's, else the module's and the kind."""
        if weight is not None and id(weight) in self.names:
            return self.names[id(weight)].removesuffix("weight").rstrip("._") or kind
        if self.leaf:
            return self.path
        return f"{self.path}.{kind}" if self.path else kind


_REMEDIES = {
    "group_norm": "use BatchNorm2d, or LayerNorm over the channels",
    "native_group_norm": "use BatchNorm2d, or LayerNorm over the channels",
    "instance_norm": "use BatchNorm2d",
    "upsample": "keep the resolution, or downsample only",
    "conv_transpose": "keep the resolution, or downsample only",
    "convolution": "use conv2d",
    "conv1d": "use conv2d with a kernel of (k, 1), or linear",
    "conv3d": "use conv2d",
    "leaky_relu": "use relu, gelu, silu or hardswish",
    "elu": "use relu, gelu, silu or hardswish",
    "selu": "use relu, gelu, silu or hardswish",
    "prelu": "use relu, gelu, silu or hardswish",
    "softplus": "use relu, gelu, silu or hardswish",
    "mish": "use relu, gelu, silu or hardswish",
    "log_softmax": "return the logits and take log_softmax outside the model",
    "embedding": "pass an image; tables of embeddings have no hardware",
    "lstm": "use attention or convolutions",
    "gru": "use attention or convolutions",
    "argmax": "return the logits and take argmax outside the model",
    "topk": "return the logits and take topk outside the model",
    "rand": "remove what is random at inference",
    "bernoulli": "remove what is random at inference",
}


def remedy_for(op: str) -> str:
    """What a user can do about an operator that has no handler."""
    for start, remedy in _REMEDIES.items():
        if op.startswith(start):
            return remedy
    return f"replace it; supported are {SUPPORTED}"


def _need_view(value: Value, what: str = "the input") -> View:
    if isinstance(value, Scores):
        state = "attention probabilities are" if value.normalized else "a product of two activations is"
        raise Unsupported(
            f"{state} used outside softmax(q.k).v",
            "use scaled_dot_product_attention; no other product of activations has hardware",
            layout=value.tainted,
            origin=value.origin,
        )
    if not isinstance(value, View):
        raise Unsupported(f"{what} is a constant", "compute on the image, or fold the constant yourself")
    return value


def _need_constant(value: Value, what: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise Unsupported(f"{what} depends on the image", "use a parameter or constant")
    return value.to(torch.float32)


def _pair(value: object) -> Pair:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def _nchw(call: Call, value: Value, flat: bool = False) -> Draft:
    view = _need_view(value)
    if view.index.dim() != 4:
        raise Unsupported(f"the input has {view.index.dim()} axes", "pass (N, C, H, W)")
    index = view.index.permute(0, 2, 3, 1)
    return ordered(view.at(index), tuple(index.shape[1:]), call.batch, flat=flat)


def _image_output(call: Call, draft: Draft) -> View:
    return View(draft, draft.view(call.batch).index.permute(0, 3, 1, 2))


def _tainted(*drafts: Draft) -> dict[str, object]:
    return {"tainted": any(draft.tainted for draft in drafts)}


# Convolution and linear layers


def _conv2d(call, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    weight_path, weight = weight, _need_constant(weight, "the convolution's weight")
    outputs, _, kh, kw = weight.shape
    for extent, step in zip((kh, kw), _pair(dilation), strict=True):
        if step != 1 and extent > 1:
            raise Unsupported(
                f"dilation must be 1, not {_pair(dilation)}", "use a larger kernel or more convolutions"
            )
    if isinstance(padding, str):
        total = (kh - 1, kw - 1) if padding == "same" else (0, 0)
        padding = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    else:
        ph, pw = _pair(padding)
        padding = (ph, ph, pw, pw)
    source = _nchw(call, x)
    if source.kind == "pad":
        padding = tuple(a + b for a, b in zip(padding, source.attrs["padding"], strict=True))
        source = source.inputs[0]
    bias = torch.zeros(outputs) if bias is None else _need_constant(bias, "the convolution's bias")
    shape = (*call.shape[2:], outputs)
    draft = Draft(
        kind="conv",
        path=call.name("conv", weight_path),
        inputs=(source,),
        shape=shape,
        params={"weight": weight.permute(0, 2, 3, 1).contiguous(), "bias": bias},
        attrs={"stride": _pair(stride), "padding": padding, "groups": groups} | _tainted(source),
    )
    return _image_output(call, draft)


def _convolution(call, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    if transposed or len(stride) != 2:
        raise Unsupported(
            "only ordinary two-dimensional convolution has hardware", remedy_for("conv_transpose")
        )
    return _conv2d(call, x, weight, bias, stride, padding, dilation, groups)


def _linear(call, x, weight, bias=None):
    original, weight = weight, _need_constant(weight, "the linear layer's weight")
    outputs, width = weight.shape
    source, positions, rows = by_position(_need_view(x), width, call.batch)
    columns = torch.empty_like(weight)
    columns[:, rows] = weight
    draft = Draft(
        kind="linear",
        path=call.name("linear", original),
        inputs=(source,),
        shape=(*source.shape[:-1], outputs),
        params={
            "weight": columns,
            "bias": torch.zeros(outputs) if bias is None else _need_constant(bias, "the linear layer's bias"),
        },
        attrs=_tainted(source),
    )
    return View(draft, (positions[:, None] * outputs + torch.arange(outputs)).reshape(call.shape))


def _matmul(call, a, b):
    if isinstance(a, View) and isinstance(b, torch.Tensor):
        if b.dim() != 2:
            raise Unsupported(f"the weight of a matmul has {b.dim()} axes", "use a linear layer: two axes")
        return _linear(call, a, b.t())
    if isinstance(a, Scores) and isinstance(b, View):
        return _weighted_values(call, a, b)
    a, b = _need_view(a, "the left factor"), _need_view(b, "the right factor")
    index = torch.arange(math.prod(call.shape)).reshape(call.shape)
    return Scores(a, b.at(b.index.transpose(-1, -2)), 1.0, index, (call.path, call.op))


def _addmm(call, bias, a, b, beta=1, alpha=1):
    if isinstance(b, torch.Tensor) and isinstance(bias, torch.Tensor) and bias.dim() == 1:
        return _linear(call, a, b.t() * alpha, bias * beta)
    product = _matmul(call, a, b)
    product = product if alpha == 1 else _scaled(call, product, torch.tensor(float(alpha)))
    if beta == 0 or (isinstance(bias, torch.Tensor) and not bool(bias.any())):
        return product
    return _add(call, product, bias, alpha=beta)


# Attention


def _heads(call: Call, view: View, what: str) -> tuple[Draft, int]:
    """The (T, heads * head_dim) node of queries, keys or values given as (..., T, head_dim)."""
    index = view.index
    index = index.reshape(call.batch, -1, *index.shape[-2:]).permute(0, 2, 1, 3)
    _, tokens, heads, width = index.shape
    draft = ordered(view.at(index), (tokens, heads * width), call.batch)
    for source in (draft, *draft.inputs):
        if source.part_of:
            source.path = f"{source.part_of}.{what}"
    return draft, heads


def _attend(call: Call, queries: View, keys: View, values: View, scale: float) -> View:
    if values.index.shape[-2] != keys.index.shape[-2]:
        raise Unsupported("keys and values differ in their number of tokens", "use one sequence for both")
    (q, heads), (k, _), (v, _) = (
        _heads(call, view, what) for view, what in ((queries, "q"), (keys, "k"), (values, "v"))
    )
    if values.index.shape[-1] != queries.index.shape[-1]:
        raise Unsupported("values and queries differ in head_dim", "use one head_dim")
    draft = Draft(
        kind="attention",
        path=call.name("attention"),
        inputs=(q, k, v),
        shape=q.shape,
        attrs={"heads": heads, "scale": float(scale)} | _tainted(q, k, v),
    )
    index = draft.view(call.batch).index.unflatten(-1, (heads, -1)).permute(0, 2, 1, 3)
    return View(draft, index.reshape(*queries.index.shape[:-1], -1))


def _sdpa(call, q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    q, k, v = (_need_view(x, what) for x, what in ((q, "the query"), (k, "the key"), (v, "the value")))
    if attn_mask is not None and not _is_no_mask(attn_mask):
        raise Unsupported("attention takes no mask or bias", "remove attn_mask")
    if is_causal:
        raise Unsupported("attention takes no causal mask", "set is_causal=False")
    if dropout_p > 0:
        raise Unsupported("attention drops at random", "set dropout_p=0 at inference (check self.training)")
    if q.index.shape[:-2] != k.index.shape[:-2] or k.index.shape[:-2] != v.index.shape[:-2]:
        raise Unsupported(
            "queries, keys and values differ in their heads", "use as many key heads as query heads"
        )
    return _attend(call, q, k, v, q.index.shape[-1] ** -0.5 if scale is None else scale)


def _is_no_mask(mask: Value) -> bool:
    if not isinstance(mask, torch.Tensor):
        return False
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())


def _softmax(call, x, dim, *_, **__):
    if not isinstance(x, Scores):
        raise Unsupported(
            "softmax has hardware inside attention only",
            "return the logits and take softmax outside the model",
            layout=len(call.shape) > 2,  # behind an unsupported operator it may be attention's
        )
    if dim not in (-1, x.index.dim() - 1):
        raise Unsupported(f"attention's softmax must run over keys, not axis {dim}", "use softmax(dim=-1)")
    return dataclasses.replace(x, normalized=True)


def _weighted_values(call: Call, scores: Scores, values: View) -> View:
    if not scores.normalized:
        _need_view(scores)
    whole = torch.arange(scores.index.numel())
    queries, keys = scores.queries.index.shape[-2], scores.keys.index.shape[-2]
    if not torch.equal(scores.index.reshape(-1), whole) or tuple(scores.index.shape[-2:]) != (queries, keys):
        raise Unsupported(
            "attention probabilities are rearranged before they meet the values",
            "multiply softmax(q.k) by v directly",
        )
    attended = _attend(call, scores.queries, scores.keys, values, scores.scale)
    return attended.at(attended.index.reshape(call.shape))


# Elementwise


def _scaled(call: Call, x: Value, factor: torch.Tensor) -> Value:
    if isinstance(x, Scores) and not x.normalized and factor.numel() == 1:
        return dataclasses.replace(x, scale=x.scale * float(factor))
    return affine(_need_view(x), factor, None, call.batch, call.name("mul"))


def _as_constant(value: object) -> torch.Tensor | None:
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    return value.to(torch.float32) if isinstance(value, torch.Tensor) else None


def _mul(call, a, b):
    for x, y in ((a, b), (b, a)):
        if (constant := _as_constant(y)) is not None:
            return _scaled(call, x, constant)
    a, b = _need_view(a), _need_view(b)
    for x, gate in ((a, b), (b, a)):
        is_sigmoid = gate.base.kind == "act" and gate.base.attrs["kind"] == "sigmoid"
        if is_sigmoid and gate.base.inputs == (x.base,) and torch.equal(x.index, gate.index):
            return _activate(call, "silu", x)
    raise Unsupported(
        "a product of two activations has no hardware", "use attention, silu or hardswish instead"
    )


def _div(call, a, b, rounding_mode=None):
    divisor = _as_constant(b)
    if divisor is None or rounding_mode is not None:
        raise Unsupported("division by an activation has no hardware", "divide by a constant")
    return _scaled(call, a, 1.0 / divisor)


def _add(call, a, b, alpha=1):
    if isinstance(b, Scores) or _as_constant(a) is not None:
        if alpha != 1:
            b = _scaled(call, b, torch.tensor(float(alpha)))
        a, b, alpha = b, a, 1
    if isinstance(a, Scores):
        constant = _as_constant(b)
        if constant is not None and not bool(constant.any()):
            return a
        raise Unsupported("attention takes no mask or bias on its scores", "remove the mask or position bias")
    if (constant := _as_constant(b)) is not None:
        view = _need_view(a)
        if torch.broadcast_shapes(constant.shape, view.index.shape) != view.index.shape:
            raise Unsupported(
                "adding the constant enlarges the tensor", "use a constant of the tensor's shape"
            )
        return affine(view, None, constant * alpha, call.batch, call.name("add"))
    a, b = _need_view(a), _need_view(b)
    if a.index.shape != b.index.shape:
        raise Unsupported(
            f"adds activations of shapes {tuple(a.index.shape)} and {tuple(b.index.shape)}",
            "add equal shapes",
        )
    if alpha != 1:
        b = affine(b, torch.tensor(float(alpha)), None, call.batch, call.name("mul"))
    a, b = dense(a, call.batch), dense(b, call.batch)
    right = b.base
    if not torch.equal(a.index, b.index) or a.base.shape != right.shape:
        matched = torch.empty_like(a.index).reshape(-1)
        matched[a.index.reshape(-1)] = b.index.reshape(-1)
        right = ordered(b.at(matched), a.base.shape, call.batch)
    draft = Draft(
        kind="add",
        path=call.name("add"),
        inputs=(a.base, right),
        shape=a.base.shape,
        attrs=_tainted(a.base, right),
    )
    return View(draft, a.index)


def _sub(call, a, b, alpha=1):
    return _add(call, a, b, alpha=-alpha)


def _rsub(call, a, b, alpha=1):
    return _add(call, b, a, alpha=-alpha)


def _activate(call: Call, kind: str, x: Value) -> View:
    view = dense(_need_view(x), call.batch)
    attrs = {"kind": kind} | _tainted(view.base)
    draft = Draft(kind="act", path=call.name(kind), inputs=(view.base,), shape=view.base.shape, attrs=attrs)
    return View(draft, view.index)


def _act(kind: str) -> Callable:
    return lambda call, x: _activate(call, kind, x)


def _gelu(call, x, approximate="none"):
    return _activate(call, "gelu" if approximate == "none" else "gelu_tanh", x)


def _clamp(call, x, min=None, max=None):
    if min == 0 and max in (None, 6):
        return _activate(call, "relu" if max is None else "relu6", x)
    raise Unsupported(f"clamps to {min}..{max}", "use relu (0 and above) or relu6 (0..6)")


# Normalization


def _layer_norm(call, x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    if len(normalized_shape) != 1:
        raise Unsupported(f"normalizes over {len(normalized_shape)} axes", "normalize over the channels only")
    (width,) = normalized_shape
    source, positions, rows = by_position(_need_view(x), width, call.batch)
    gamma, beta = torch.empty(width), torch.empty(width)
    gamma[rows] = torch.ones(width) if weight is None else _need_constant(weight, "gamma")
    beta[rows] = torch.zeros(width) if bias is None else _need_constant(bias, "beta")
    draft = Draft(
        kind="layernorm",
        path=call.name("layernorm", weight),
        inputs=(source,),
        shape=source.shape,
        params={"gamma": gamma, "beta": beta},
        attrs={"eps": float(eps)} | _tainted(source),
    )
    return View(draft, (positions[:, None] * width + rows).reshape(call.shape))


def _native_layer_norm(call, x, normalized_shape, weight, bias, eps):
    return [_layer_norm(call, x, normalized_shape, weight, bias, eps), None, None]


def _batch_norm(call, x, weight, bias, mean, variance, momentum, eps):
    mean, variance = _need_constant(mean, "the mean"), _need_constant(variance, "the variance")
    scale = torch.rsqrt(variance.double() + eps)
    if weight is not None:
        scale = scale * _need_constant(weight, "gamma")
    shift = -mean * scale
    if bias is not None:
        shift = shift + _need_constant(bias, "beta")
    view = _need_view(x)
    shape = (1, -1, *[1] * (view.index.dim() - 2))
    result = affine(view, scale.reshape(shape), shift.reshape(shape), call.batch, call.name("batchnorm"))
    return [result, None, None]


# Pooling and class token


def _max_pool2d(call, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False):
    if _pair(dilation) != (1, 1):
        raise Unsupported(f"dilation must be 1, not {_pair(dilation)}", "pool without dilation")
    return _pool(call, "maxpool", x, kernel_size, stride, padding)


def _avg_pool2d(
    call,
    x,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    kernel = _pair(kernel_size)
    if _pair(padding) != (0, 0) and not count_include_pad:
        raise Unsupported("averages over fewer pixels at the border", "set count_include_pad=True")
    if divisor_override not in (None, math.prod(kernel)):
        raise Unsupported("divides by another number than its window's", "remove divisor_override")
    return _pool(call, "avgpool", x, kernel, stride, padding)


def _pool(call: Call, kind: str, x: Value, kernel, stride, padding) -> View:
    source = _nchw(call, x)
    kernel = _pair(kernel)
    stride, (ph, pw) = _pair(stride or kernel), _pair(padding)
    height, width = (
        (source.shape[axis] + 2 * pad - kernel[axis]) // stride[axis] + 1 for axis, pad in ((0, ph), (1, pw))
    )
    if (height, width) != call.shape[2:]:
        raise Unsupported("pools windows that reach beyond the image", "set ceil_mode=False and pad instead")
    attrs = {"kernel": kernel, "stride": stride, "padding": (ph, ph, pw, pw)} | _tainted(source)
    shape = (height, width, source.channels)
    return _image_output(
        call, Draft(kind=kind, path=call.name(kind), inputs=(source,), shape=shape, attrs=attrs)
    )


def _adaptive(kind: str) -> Callable:
    def pool(call, x, output_size):
        sizes, outputs = _need_view(x).index.shape[2:], call.shape[2:]
        if any(size % output for size, output in zip(sizes, outputs, strict=True)):
            raise Unsupported(
                f"pools {tuple(sizes)} to {tuple(outputs)} with windows of several sizes", "use divisors"
            )
        kernel = tuple(size // output for size, output in zip(sizes, outputs, strict=True))
        if kernel == (1, 1):
            return x
        return _pool(call, kind, x, kernel, kernel, 0)

    return pool


def _mean(call, x, dim=None, keepdim=False, dtype=None):
    view = dense(_need_view(x), call.batch)
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
    attrs = {"kernel": kernel, "stride": kernel, "padding": (0, 0, 0, 0)} | _tainted(base)
    return View(
        Draft(kind="avgpool", path=call.name("avgpool"), inputs=(base,), shape=shape, attrs=attrs), index
    )


def _pad(call, x, pad, *rest, **kwargs):
    mode = next((value for value in (*rest, *kwargs.values()) if isinstance(value, str)), "constant")
    value = next((v for v in (*rest, *kwargs.values()) if isinstance(v, int | float)), 0)
    if mode != "constant" or value != 0 or len(pad) > 4 or any(p < 0 for p in pad):
        raise Unsupported(
            f"pads with mode {mode!r} and value {value}", "pad H and W with zeros before a convolution"
        )
    left, right, top, bottom = [*pad, 0, 0][:4]
    source = _nchw(call, x)
    height, width, channels = source.shape
    draft = Draft(
        kind="pad",
        path=call.name("pad"),
        inputs=(source,),
        shape=(height + top + bottom, width + left + right, channels),
        attrs={"padding": (top, bottom, left, right)} | _tainted(source),
    )
    return _image_output(call, draft)


def _cat(call, tensors, dim=0):
    views = [x for x in tensors if not isinstance(x, torch.Tensor)]
    bases = {_need_view(x).base for x in views}
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
        attrs=_tainted(source),
    )
    return View(draft, draft.view(call.batch).index.permute(order))


def _dropout(call, x, p=0.5, train=False):
    if train and p > 0:
        raise Unsupported("drops at random also at inference", "pass training=self.training to dropout")
    return x


def _activation_relu6(call, x, min_val=-1.0, max_val=1.0):
    return _clamp(call, x, min_val, max_val)


HANDLERS: dict[str, Callable] = {
    "conv2d": _conv2d,
    "convolution": _convolution,
    "linear": _linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "scaled_dot_product_attention": _sdpa,
    "softmax": _softmax,
    "_softmax": _softmax,
    "mul": _mul,
    "div": _div,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "neg": lambda call, x: _scaled(call, x, torch.tensor(-1.0)),
    **{kind: _act(kind) for kind in ("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid")},
    "gelu": _gelu,
    "hardtanh": _activation_relu6,
    "clamp": _clamp,
    "clamp_min": lambda call, x, min: _clamp(call, x, min),
    "layer_norm": _layer_norm,
    "native_layer_norm": _native_layer_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "max_pool2d": _max_pool2d,
    "max_pool2d_with_indices": lambda *args, **kwargs: [_max_pool2d(*args, **kwargs), None],
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive("avgpool"),
    "_adaptive_avg_pool2d": _adaptive("avgpool"),
    "adaptive_max_pool2d": lambda call, x, size: [_adaptive("maxpool")(call, x, size), None],
    "mean": _mean,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "cat": _cat,
    "dropout": _dropout,
    "native_dropout": lambda call, x, p, train: [_dropout(call, x, p, train), None],
}
