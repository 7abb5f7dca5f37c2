"""The integer graph executed: the truth that everything else is compared with.

`evaluate` is the definition of each operator: naive, vectorised over a batch; sums of products go through float64
BLAS, which is exact below 2**53, and all other arithmetic is `arch.numerics`. `run` takes the compiled forms of
`sim.accelerated` where they exist, which are tested equal to it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from ..arch import numerics
from ..arch.errors import UserError
from ..arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Elementwise,
    Gather,
    Graph,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Reshape,
    Slice,
    Tensor,
    reads,
)
from . import accelerated

__all__ = ["BatchError", "evaluate", "quantize_batch", "run"]

_DTYPES = {"s8": np.int8, "s16": np.int16}
_CHUNK, _CHUNK_BYTES = 64, 1 << 25
"""Images that go through the graph together: so many, or fewer with tensors of so many bytes in all."""


class BatchError(UserError):
    """A batch that does not fit a graph's input; the message names the demanded property."""


def quantize_batch(graph: Graph, images: np.ndarray) -> np.ndarray:
    """Input codes (N, H, W, C) of raw images (N, H, W, C) with values 0..raw_max, integer or float.

    Raises BatchError for another shape, a type that is not numeric, or values that are not finite or too large.
    """
    images = np.asarray(images)
    tensor, preprocessing = graph.tensor(graph.input), graph.preprocessing
    _check_shape(graph, images)
    if not (np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)):
        raise BatchError(
            f"batch must be integer or float images, not {images.dtype}; convert it to uint8 first"
        )
    values = np.arange(int(images.max()) + 1) if images.dtype == np.uint8 and images.size else images
    real = values.astype(np.float64)
    if not np.isfinite(real).all():
        raise BatchError(
            f"batch must be finite, not NaN or infinite in {int((~np.isfinite(real)).sum())} places; check the images"
        )
    if real.size and real.max() > preprocessing.raw_max:
        raise BatchError(
            f"batch must have raw values up to {preprocessing.raw_max:g}, not {real.max():g}; "
            f"pass images before preprocessing, scaled to 0..{preprocessing.raw_max:g}"
        )
    if values is not images:  # every byte once, by channel
        real = real[:, None]
    real = (real * preprocessing.scale - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    codes = numerics.quantize_input(real, tensor.scale, tensor.zero_point, *_range(tensor)).astype(
        _DTYPES[tensor.dtype]
    )
    if values is images:
        return codes
    channels = images.shape[-1]
    return np.broadcast_to(codes, (len(codes), channels))[images, np.arange(channels)]


def run(
    graph: Graph, codes: np.ndarray, *, keep: bool = False, threads: int | None = None
) -> np.ndarray | dict[str, np.ndarray]:
    """The output codes (N, ...) for input codes (N, *input shape), or with `keep` every tensor by its name.

    Up to `threads` (None: numba's NUMBA_NUM_THREADS, by default the processors) work on different images. Memory
    does not grow with the number of images, except for the results.

    With `keep`, an attention operator A adds A/logits (bias included) and A/exp (N, heads, T, Tk / windows), keys
    counted inside the query's window, and A/row_m, A/row_n (N, heads, T). Raises BatchError for codes of another shape, type or range.
    """
    codes = np.asarray(codes)
    tensor = graph.tensor(graph.input)
    _check_shape(graph, codes)
    if not np.issubdtype(codes.dtype, np.integer):
        raise BatchError(f"input codes must be integers, not {codes.dtype}; use quantize_batch")
    lo, hi = _range(tensor)
    if codes.size and not lo <= codes.min() <= codes.max() <= hi:
        raise BatchError(
            f"input codes must be in {lo}..{hi}, not {codes.min()}..{codes.max()}; use quantize_batch"
        )
    plan = _plan(graph, keep)
    size = sum(t.positions * t.channels * _DTYPES[t.dtype]().itemsize for t in graph.tensors)
    threads = threads or numba.config.NUMBA_NUM_THREADS
    chunk = min(_CHUNK, max(_CHUNK_BYTES // size, 1), -(-max(len(codes), 1) // threads))
    starts = range(0, max(len(codes), 1), chunk)
    results: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(threads) as pool:
        work = (lambda i: _run_chunk(graph, plan, codes[i : i + chunk], keep)), starts
        parts = pool.map(*work) if threads > 1 and len(starts) > 1 else map(*work)
        for start, part in zip(starts, parts, strict=True):
            for name, value in part.items():
                if name not in results:
                    results[name] = np.empty((len(codes), *value.shape[1:]), value.dtype)
                results[name][start : start + chunk] = value
    return results if keep else results[graph.output]


def evaluate(graph: Graph, operator: Operator, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What one operator writes, by name, given the values (N, ...) of the tensors that it reads."""
    results: dict[str, np.ndarray] = {}
    if isinstance(operator, Constant):
        count = len(next(iter(values.values())))
        value = graph.constant(operator, "value")
        results[operator.output] = np.broadcast_to(value, (count, *value.shape))
        return _narrow(graph, results)
    if isinstance(operator, Concat):
        results[operator.output] = _concat(operator, values)
        return _narrow(graph, results)
    x = values[operator.input].astype(np.int64)
    match operator:
        case Linear():
            acc = _matmul(x, graph.constant(operator, "weight").T)
            _drain(graph, operator, acc, values, results)
        case Conv():
            _drain(graph, operator, _conv(graph, operator, x), values, results)
        case Attention():
            results[operator.output], intermediates = _attention(graph, operator, values)
            return _narrow(graph, results) | intermediates
        case LayerNorm():
            g, b = graph.constant(operator, "g"), graph.constant(operator, "b")
            results[operator.output] = numerics.layernorm(
                x, g, b, operator.n, operator.eps, numerics.rsqrt_table(), operator.lo, operator.hi
            )
        case MaxPool():
            windows = _windows(x, operator, operator.kernel, np.iinfo(np.int64).min)
            results[operator.output] = windows.max(axis=(-2, -1))
        case AvgPool():
            pixels = x[:, :, None, :] if x.ndim == 3 else x
            windows = _windows(pixels, operator, operator.kernel, graph.tensor(operator.input).zero_point)
            _drain(graph, operator, windows.sum(axis=(-2, -1)), values, results)
        case Elementwise():
            _drain(graph, operator, x, values, results)
        case Multiply():
            _drain(graph, operator, x * values[operator.other].astype(np.int64), values, results)
        case Gather():
            results[operator.output] = _gather(graph, operator, x)
        case Slice():
            results[operator.output] = x[:, operator.start : operator.start + operator.count]
        case Reshape():
            results[operator.output] = x.reshape(len(x), *graph.tensor(operator.output).shape)
    return _narrow(graph, results)


_Plan = list[tuple[Operator, accelerated.Step | None, tuple[str, ...]]]


def _plan(graph: Graph, keep: bool) -> _Plan:
    """The operators with their compiled forms and, without `keep`, the tensors that nobody reads after them."""
    plan: _Plan = []
    needed = {graph.output}
    for operator in reversed(graph.operators):
        last = () if keep else tuple(set(reads(operator)) - needed)
        needed |= set(last)
        plan.insert(0, (operator, accelerated.prepare(graph, operator), last))
    return plan


def _run_chunk(graph: Graph, plan: _Plan, codes: np.ndarray, keep: bool) -> dict[str, np.ndarray]:
    values = {graph.input: np.ascontiguousarray(codes, dtype=_DTYPES[graph.tensor(graph.input).dtype])}
    for operator, step, last in plan:
        found = evaluate(graph, operator, values) if step is None else step(values, keep)
        values |= {name: np.ascontiguousarray(value) for name, value in found.items()}
        for name in last:
            del values[name]
    return values if keep else {graph.output: values[graph.output]}


def _range(tensor: Tensor) -> tuple[int, int]:
    return -(1 << (tensor.bits - 1)), (1 << (tensor.bits - 1)) - 1


def _check_shape(graph: Graph, batch: np.ndarray) -> None:
    shape = graph.tensor(graph.input).shape
    if batch.ndim != len(shape) + 1 or batch.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise BatchError(
            f"batch for graph {graph.name!r} must have shape (N, {wanted}), not {batch.shape}; reshape it"
        )


def _narrow(graph: Graph, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors in their own type; anything that would not fit is a broken graph."""
    for name, value in results.items():
        tensor = graph.tensor(name)
        lo, hi = _range(tensor)
        assert not value.size or (lo <= value.min() and value.max() <= hi), (
            f"{name} exceeds its {tensor.bits} bits"
        )
        results[name] = value.astype(_DTYPES[tensor.dtype]).reshape(len(value), *tensor.shape)
    return results


def _matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Integer product in float64: exact, since accumulators have at most 27 bits."""
    return (x.astype(np.float64) @ w.astype(np.float64)).astype(np.int64)


def _windows(
    x: np.ndarray,
    operator: Conv | MaxPool | AvgPool,
    kernel: tuple[int, int],
    fill: int,
    dilation: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """(N, Ho, Wo, C, kh, kw) windows of (N, H, W, C), padded with `fill`."""
    top, bottom, left, right = operator.padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    span = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(1, 2))
    windows = windows[:, :: operator.stride[0], :: operator.stride[1]]
    return windows[..., :: dilation[0], :: dilation[1]]


def _conv(graph: Graph, operator: Conv, x: np.ndarray) -> np.ndarray:
    weight = graph.constant(operator, "weight")
    zero_point = graph.tensor(operator.input).zero_point
    outputs, kh, kw, depth = weight.shape
    windows = _windows(x, operator, (kh, kw), zero_point, operator.dilation)
    n, height, width = windows.shape[:3]
    patches = windows.reshape(n, height, width, operator.groups, depth, kh * kw).swapaxes(-1, -2)
    patches = patches.reshape(n, height * width, operator.groups, kh * kw * depth).swapaxes(1, 2)
    rows = weight.reshape(operator.groups, outputs // operator.groups, kh * kw * depth)
    acc = _matmul(patches, rows.swapaxes(1, 2))  # (N, groups, positions, outputs / groups)
    acc = acc.swapaxes(1, 2).reshape(n, height * width, outputs)
    if not operator.prefix:
        return acc.reshape(n, height, width, outputs)
    padding = zero_point * weight.astype(np.int64).sum(axis=(1, 2, 3))
    prefix = np.broadcast_to(padding, (n, operator.prefix, outputs))
    return np.concatenate([prefix, acc], axis=1)


def _gather(graph: Graph, operator: Gather, x: np.ndarray) -> np.ndarray:
    index = graph.constant(operator, "index")
    rows = x.reshape(len(x), -1, x.shape[-1])
    return np.where(
        index[:, None] < 0, graph.tensor(operator.input).zero_point, rows[:, np.maximum(index, 0)]
    )


def _concat(operator: Concat, values: dict[str, np.ndarray]) -> np.ndarray:
    parts = [values[name].astype(np.int64) for name in operator.inputs]
    if operator.axis == "channels":
        return np.concatenate(parts, axis=-1)
    return np.concatenate([part.reshape(len(part), -1, part.shape[-1]) for part in parts], axis=1)


def _drain(graph: Graph, operator: Operator, acc: np.ndarray, values: dict, results: dict) -> None:
    drain = operator.drain
    m, n, constant = (graph.constant(operator, field).astype(np.int64) for field in ("m", "n", "C"))
    if drain.table:
        index = numerics.requantize(acc, m, n, constant, -(1 << 31), (1 << 31) - 1)
        value = numerics.clamp(numerics.lookup(index, graph.constant(operator, "table")), drain.lo, drain.hi)
    elif drain.residual is not None:
        t = numerics.requantize(acc, m, n, constant, -32768, 32767)
        r = values[drain.residual.tensor].astype(np.int64).reshape(t.shape)
        value = numerics.residual_add(t, r, drain.residual.m, drain.residual.n, drain.lo, drain.hi)
    else:
        value = numerics.requantize(acc, m, n, constant, drain.lo, drain.hi)
    results[operator.output] = value
    if drain.second is not None:
        s = drain.second
        results[s.tensor] = numerics.requantize(value, s.m, s.n, s.constant, s.lo, s.hi)


def _attention(graph: Graph, operator: Attention, values: dict) -> tuple[np.ndarray, dict]:
    """The output, and the steps in between by name."""

    def heads(name: str) -> np.ndarray:
        """(N, windows, heads, tokens of a window, channels of a head)."""
        x = values[name].astype(np.int64)
        x = x.reshape(len(x), operator.windows, -1, operator.heads, x.shape[-1] // operator.heads)
        return x.swapaxes(2, 3)

    def per_head(field: str, axes: int) -> np.ndarray:
        return graph.constant(operator, field).astype(np.int64).reshape(-1, *(1,) * axes)

    q, k, v = heads(operator.input), heads(operator.keys), heads(operator.values)
    half = 1 << (numerics.LOGIT_BITS - 1)
    m, n, constant = per_head("m", 2), per_head("n", 2), per_head("C", 2)
    logits = numerics.requantize(_matmul(q, k.swapaxes(-1, -2)), m, n, constant, -half, half - 1)
    mask = None
    if operator.bias:
        bias = graph.constant(operator, "bias")
        logits, mask = numerics.logit_bias(logits, bias), bias != numerics.MASKED
    exp = numerics.softmax_exp(logits, graph.constant(operator, "exp"), mask)
    row = numerics.softmax_row_scale(
        exp.sum(axis=-1), per_head("m2", 1), per_head("n2", 1), numerics.recip_table()
    )
    rm, rn, rc = (a[..., None] for a in (row.m, row.n, row.constant))
    y = numerics.requantize(_matmul(exp, v), rm, rn, rc, operator.lo, operator.hi)

    def joined(step: np.ndarray) -> np.ndarray:
        """(N, windows, heads, t, ...) as (N, heads, windows * t, ...)."""
        step = step.swapaxes(1, 2)
        return step.reshape(*step.shape[:2], -1, *step.shape[4:])

    steps = {"logits": logits, "exp": exp, "row_m": row.m, "row_n": row.n}
    intermediates = {f"{operator.name}/{step}": joined(value) for step, value in steps.items()}
    return joined(y).swapaxes(1, 2).reshape(len(y), -1, values[operator.values].shape[-1]), intermediates
