"""What each core ATen operator becomes in the float graph.

`HANDLERS[name](call, *args, **kwargs)` receives the operator's arguments with values in place of graph nodes: `View`
and `Scores` for what depends on the image, plain tensors for parameters and constants. It returns the operator's
value, or raises `Unsupported`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import patterns_attention as attention
from . import patterns_elementwise as elementwise
from . import patterns_joining as joining
from . import patterns_layers as layers
from . import patterns_pooling as pooling
from .operands import Call, Value
from .views import Scores, Unsupported, View

__all__ = ["HANDLERS", "MOVEMENTS", "PASS_THROUGH", "SHAPE_ONLY", "SUPPORTED", "remedy_for"]

# fmt: off
MOVEMENTS = frozenset([
    "view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "swapaxes", "movedim",
    "numpy_T", "mT", "unsqueeze", "squeeze", "select", "slice", "narrow", "index_select", "split", "split_with_sizes",
    "tensor_split", "chunk", "unbind", "expand", "broadcast_to", "repeat", "flip", "roll", "pixel_shuffle",
    "pixel_unshuffle",
])
# fmt: on
"""Operators that only move data: they run as themselves on element numbers."""

PASS_THROUGH = frozenset(
    ["clone", "contiguous", "alias", "detach", "to", "_to_copy", "lift_fresh_copy", "identity", "positive"]
)
"""Operators that change nothing at inference."""

SHAPE_ONLY = frozenset(["new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"])
"""Operators that make constants of an activation's shape."""

SUPPORTED = (
    "conv2d, linear, matmul by a weight, batch_norm, layer_norm, scaled_dot_product_attention or its softmax "
    "spelling, relu, relu6, gelu, silu, sigmoid, tanh, hardswish, hardsigmoid, add, mul, cat, max_pool2d, "
    "avg_pool2d, mean, pad, unfold, roll"
)

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


def _matmul(call: Call, a: Value, b: Value) -> View | Scores:
    if isinstance(a, View) and isinstance(b, torch.Tensor):
        if b.dim() != 2:
            raise Unsupported(f"the weight of a matmul has {b.dim()} axes", "use a linear layer: two axes")
        return layers.linear(call, a, b.t())
    if isinstance(a, Scores) and isinstance(b, View):
        return attention.weighted_values(call, a, b)
    return attention.product(call, a, b)


def _addmm(call, bias, a, b, beta=1, alpha=1):
    if isinstance(b, torch.Tensor) and isinstance(bias, torch.Tensor) and bias.dim() == 1:
        return layers.linear(call, a, b.t() * alpha, bias * beta)
    product = _matmul(call, a, b)
    if alpha != 1:
        product = elementwise.scaled(call, product, torch.tensor(float(alpha)))
    if beta == 0:
        return product
    return elementwise.add(call, product, bias, alpha=beta)


HANDLERS: dict[str, Callable] = {
    "conv2d": layers.conv2d,
    "convolution": layers.convolution,
    "linear": layers.linear,
    "matmul": _matmul,
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "baddbmm": _addmm,
    "scaled_dot_product_attention": attention.scaled_dot_product_attention,
    "softmax": attention.softmax,
    "_softmax": attention.softmax,
    "mul": elementwise.mul,
    "square": elementwise.square,
    "pow": elementwise.square,
    "div": elementwise.div,
    "add": elementwise.add,
    "sub": elementwise.sub,
    "rsub": elementwise.rsub,
    "neg": lambda call, x: elementwise.scaled(call, x, torch.tensor(-1.0)),
    **{
        kind: elementwise.activation(kind)
        for kind in ("relu", "relu6", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "erf")
    },
    "gelu": elementwise.gelu,
    "terrazzo::fake_quantize": elementwise.fake_quantize,
    "hardtanh": elementwise.hardtanh,
    "clamp": elementwise.clamp,
    "clamp_min": lambda call, x, min: elementwise.clamp(call, x, min),
    "layer_norm": layers.layer_norm,
    "native_layer_norm": layers.native_layer_norm,
    "_native_batch_norm_legit_no_training": layers.batch_norm,
    "max_pool2d": pooling.max_pool2d,
    "max_pool2d_with_indices": lambda *args, **kwargs: [pooling.max_pool2d(*args, **kwargs), None],
    "avg_pool2d": pooling.avg_pool2d,
    "adaptive_avg_pool2d": pooling.adaptive_pool2d("avgpool"),
    "_adaptive_avg_pool2d": pooling.adaptive_pool2d("avgpool"),
    "adaptive_max_pool2d": lambda call, x, size: [pooling.adaptive_pool2d("maxpool")(call, x, size), None],
    "mean": pooling.mean,
    "sum": pooling.summed,
    "amax": pooling.amax,
    "max": lambda call, x, dim, keepdim=False: [pooling.amax(call, x, dim, keepdim), None],
    "pad": joining.pad,
    "constant_pad_nd": joining.pad,
    "cat": joining.cat,
    "stack": joining.stack,
    "im2col": joining.unfold,
    "col2im": joining.fold,
    "dropout": elementwise.dropout,
    "native_dropout": lambda call, x, p, train: [elementwise.dropout(call, x, p, train), None],
}
