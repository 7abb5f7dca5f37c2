"""The reference against loops over Python integers that share nothing with it, and what it refuses."""

import numpy as np
import pytest

from terrazzo.arch.graph import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Gather,
    Graph,
    Linear,
    MaxPool,
    Multiply,
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
)
from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.sim import reference

PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.5, 0.25), std=(0.5, 2.0))


@pytest.fixture(autouse=True, params=["compiled", "plain"])
def form(request, monkeypatch):
    """Everything once as `run` does it and once by the definitions alone."""
    if request.param == "plain":
        monkeypatch.setattr(reference.accelerated, "prepare", lambda graph, operator: None)


def tensor(name, *shape, zero_point=0, dtype="s8", scale=0.1):
    bits = 8 if dtype == "s8" else 16
    return Tensor(name=name, shape=shape, dtype=dtype, scale=scale, zero_point=zero_point, bits=bits)


def drain_constants(rng, name, count, shift):
    return {
        f"{name}/m": rng.integers(1 << 15, 1 << 16, count).astype(np.uint16),
        f"{name}/n": np.full(count, shift, np.uint8),
        f"{name}/C": rng.integers(-(1 << (shift + 3)), 1 << (shift + 3), count).astype(np.int64),
    }


def weights(rng, name, *shape):
    schemes = rng.integers(0, 4, shape[0]).astype(np.uint8)
    rows = [rng.choice(codebook(Scheme(int(s))), shape[1:]) for s in schemes]
    return {f"{name}/weight": np.stack(rows).astype(np.int8), f"{name}/scheme": schemes}


def graph_of(tensors, operators, constants):
    return Graph(
        name="test",
        input=tensors[0].name,
        output=operators[-1].output,
        preprocessing=PREPROCESSING,
        tensors=tuple(tensors),
        operators=tuple(operators),
        constants=constants,
    )


def drained(graph, operator, acc, channel):
    """One accumulator through m, n, C as Python integers, without clamp."""
    fields = [graph.constants[f"{operator.name}/{f}"] for f in ("m", "n", "C")]
    m, n, c = (int(f[channel if len(f) > 1 else 0]) for f in fields)
    return (acc * m + c) >> n


def clip(value, lo, hi):
    return max(lo, min(hi, value))


def codes_for(graph, count=3, seed=1):
    shape = graph.tensor(graph.input).shape
    return np.random.default_rng(seed).integers(-128, 128, (count, *shape)).astype(np.int8)


@pytest.mark.parametrize(
    ("groups", "stride", "padding", "prefix", "dilation"),
    [
        (1, (1, 1), (0, 0, 0, 0), 0, (1, 1)),
        (1, (2, 1), (1, 0, 2, 1), 0, (1, 1)),
        (2, (1, 2), (1, 1, 1, 1), 0, (1, 1)),
        (1, (2, 2), (0, 1, 0, 0), 2, (1, 1)),
        (2, (1, 2), (2, 1, 3, 0), 0, (2, 3)),
    ],
)
def test_convolution(groups, stride, padding, prefix, dilation):
    rng = np.random.default_rng(0)
    height, width, channels, outputs, kh, kw = 5, 6, 4, 6, 3, 2
    oh = (height + padding[0] + padding[1] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    ow = (width + padding[2] + padding[3] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    shape = (prefix + oh * ow, outputs) if prefix else (oh, ow, outputs)
    operator = Conv(
        name="c", input="x", output="y", stride=stride, padding=padding, groups=groups, prefix=prefix,
        dilation=dilation, drain=Drain(lo=-100, hi=90),
    )  # fmt: skip
    constants = weights(rng, "c", outputs, kh, kw, channels // groups) | drain_constants(
        rng, "c", outputs, 23
    )
    graph = graph_of(
        [tensor("x", height, width, channels, zero_point=-7), tensor("y", *shape)], [operator], constants
    )
    x = codes_for(graph)
    weight, depth, per_group = constants["c/weight"], channels // groups, outputs // groups
    expected = []
    for image in x:
        rows = []
        for p in range(-prefix, oh * ow):
            for o in range(outputs):
                acc = 0
                for ky in range(kh):
                    for kx in range(kw):
                        for c in range(depth):
                            iy, ix = (
                                (p // ow) * stride[0] + ky * dilation[0] - padding[0],
                                (p % ow) * stride[1] + kx * dilation[1] - padding[2],
                            )
                            inside = p >= 0 and 0 <= iy < height and 0 <= ix < width
                            code = int(image[iy, ix, (o // per_group) * depth + c]) if inside else -7
                            acc += code * int(weight[o, ky, kx, c])
                rows.append(clip(drained(graph, operator, acc, o), -100, 90))
        expected.append(rows)
    got = reference.run(graph, x)
    assert got.dtype == np.int8 and np.array_equal(got, np.reshape(expected, (3, *shape)))


def test_linear_table_residual_and_second_output():
    rng = np.random.default_rng(2)
    tensors = [
        tensor("x", 5, 3, zero_point=9),
        tensor("constant", 5, 7, dtype="s16"),
        tensor("wide", 5, 7, dtype="s16"),
        tensor("narrow", 5, 7, zero_point=3),
        tensor("y", 5, 4),
        tensor("z", 5, 4),
    ]
    second = Second(tensor="narrow", m=50000, n=23, constant=(3 << 23) + (1 << 22), lo=-128, hi=120)
    residual = Residual(tensor="constant", m=45000, n=15)
    operators = [
        Constant(name="constant", output="constant"),
        Linear(
            name="a", input="x", output="wide", drain=Drain(lo=0, hi=30000, residual=residual, second=second)
        ),
        Linear(name="b", input="narrow", output="y", drain=Drain(lo=-100, hi=100, table=True)),
        Elementwise(name="e", input="y", output="z", drain=Drain(lo=-128, hi=127, table=True)),
    ]
    constants = {
        **weights(rng, "a", 7, 3),
        **drain_constants(rng, "a", 7, 15),
        **weights(rng, "b", 4, 7),
        **drain_constants(rng, "b", 4, 20),
        **drain_constants(rng, "e", 1, 15),
        "constant/value": rng.integers(-32768, 32768, (5, 7)).astype(np.int16),
        "b/table": rng.integers(-128, 128, 1024).astype(np.int8),
        "e/table": rng.integers(-128, 128, 256).astype(np.int8),
    }
    graph = graph_of(tensors, operators, constants)
    x = codes_for(graph)
    got = reference.run(graph, x, keep=True)
    a, b = (constants[f"{n}/weight"].astype(object) for n in "ab")
    for i in range(len(x)):
        for p in range(5):
            narrow = []
            for o in range(7):
                t = drained(graph, operators[1], int((x[i, p].astype(object) * a[o]).sum()), o)
                r = (int(constants["constant/value"][p, o]) * 45000 + (1 << 14)) >> 15
                wide = clip(clip(clip(t, -32768, 32767) + r, -32768, 32767), 0, 30000)
                narrow.append(clip((wide * 50000 + second.constant) >> 23, -128, 120))
                assert got["wide"][i, p, o] == wide and got["narrow"][i, p, o] == narrow[-1]
            for o in range(4):
                index = clip(drained(graph, operators[2], int(np.dot(narrow, b[o])), o), -512, 511)
                y = clip(int(constants["b/table"][index + 512]), -100, 100)
                index = clip(drained(graph, operators[3], y, 0), -128, 127)
                assert got["y"][i, p, o] == y and got["z"][i, p, o] == constants["e/table"][index + 128]


def test_pools_and_moves():
    rng = np.random.default_rng(3)
    tensors = [
        tensor("x", 5, 4, 3, zero_point=11),
        tensor("max", 3, 2, 3, zero_point=11),
        tensor("average", 2, 2, 3),
        tensor("tokens", 4, 3),
        tensor("some", 2, 3),
        tensor("mean", 1, 3),
    ]
    average = AvgPool(
        name="average", input="max", output="average", kernel=(3, 2), stride=(1, 1), padding=(1, 0, 0, 1),
        drain=Drain(lo=-128, hi=127),
    )  # fmt: skip
    mean = AvgPool(
        name="mean", input="some", output="mean", kernel=(2, 1), stride=(1, 1), drain=Drain(lo=-9, hi=9)
    )
    operators = [
        MaxPool(name="max", input="x", output="max", kernel=(2, 3), stride=(2, 2), padding=(1, 0, 1, 0)),
        average,
        Reshape(name="tokens", input="average", output="tokens"),
        Slice(name="some", input="tokens", output="some", start=1, count=2),
        mean,
    ]
    constants = drain_constants(rng, "average", 1, 17) | drain_constants(rng, "mean", 1, 16)
    graph = graph_of(tensors, operators, constants)
    x = codes_for(graph)
    got = reference.run(graph, x, keep=True)
    for i in range(len(x)):
        for c in range(3):
            for y in range(3):
                for z in range(2):
                    window = [
                        int(x[i, iy, ix, c])
                        for iy in range(2 * y - 1, 2 * y + 1)
                        for ix in range(2 * z - 1, 2 * z + 2)
                        if 0 <= iy < 5 and 0 <= ix < 4
                    ]
                    assert got["max"][i, y, z, c] == max(window)
            for y in range(2):
                for z in range(2):
                    acc = sum(
                        int(got["max"][i, iy, ix, c]) if 0 <= iy < 3 and 0 <= ix < 2 else 11
                        for iy in range(y - 1, y + 2)
                        for ix in range(z, z + 2)
                    )
                    assert got["average"][i, y, z, c] == clip(drained(graph, average, acc, 0), -128, 127)
        assert got["tokens"][i].tolist() == got["average"][i].reshape(4, 3).tolist()
        assert got["some"][i].tolist() == got["tokens"][i][1:3].tolist()
        sums = got["some"][i].astype(int).sum(axis=0)
        assert got["mean"][i, 0].tolist() == [clip(drained(graph, mean, int(s), 0), -9, 9) for s in sums]


@pytest.mark.parametrize("broadcast", [False, True])
def test_multiply(broadcast):
    rng = np.random.default_rng(5)
    tensors = [
        tensor("x", 2, 3, 4),
        tensor("wide", 2, 3, 4, dtype="s16"),
        tensor("gate", *((1, 1) if broadcast else (2, 3)), 4),
        tensor("y", 2, 3, 4),
        tensor("z", 2, 3, 4, dtype="s16"),
    ]
    operators = [
        Constant(name="gate", output="gate"),
        Elementwise(name="wide", input="x", output="wide", drain=Drain(lo=-32768, hi=32767)),
        Multiply(name="a", input="x", other="gate", output="y", drain=Drain(lo=-128, hi=127, table=True)),
        Multiply(
            name="b", input="wide", other="gate" if broadcast else "y", output="z",
            drain=Drain(lo=-32768, hi=30000),
        ),
    ]  # fmt: skip
    constants = {
        **drain_constants(rng, "wide", 1, 8),
        **drain_constants(rng, "a", 1, 20),
        **drain_constants(rng, "b", 1, 30),
        "gate/value": rng.integers(-128, 128, tensors[2].shape).astype(np.int8),
        "a/table": rng.integers(-128, 128, 256).astype(np.int8),
    }
    graph = graph_of(tensors, operators, constants)
    got = reference.run(graph, codes_for(graph), keep=True)
    for i, y, x, c in np.ndindex(3, 2, 3, 4):
        gate = int(constants["gate/value"][(0, 0, c) if broadcast else (y, x, c)])
        index = clip(drained(graph, operators[2], int(got["x"][i, y, x, c]) * gate, 0), -128, 127)
        assert got["y"][i, y, x, c] == constants["a/table"][index + 128]
        wide = int(got["wide"][i, y, x, c])
        acc = wide * (gate if broadcast else int(got["y"][i, y, x, c]))
        assert got["z"][i, y, x, c] == clip(drained(graph, operators[3], acc, 0), -32768, 30000)


def test_gather_and_concat():
    index = np.array([5, -1, 0, 0, 3, -1, 2, 1], np.int32)
    tensors = [
        tensor("x", 2, 3, 2, zero_point=-9),
        tensor("moved", 4, 2, 2, zero_point=-9),
        tensor("channels", 4, 2, 4, zero_point=-9),
        tensor("tokens", 8, 2, zero_point=-9),
        tensor("positions", 14, 2, zero_point=-9),
    ]
    operators = [
        Gather(name="moved", input="x", output="moved"),
        Concat(name="channels", inputs=("moved", "moved"), output="channels"),
        Gather(name="tokens", input="moved", output="tokens"),
        Concat(name="positions", inputs=("tokens", "x"), output="positions", axis="positions"),
    ]
    constants = {"moved/index": index, "tokens/index": np.arange(8, dtype=np.int32)[::-1].copy()}
    graph = graph_of(tensors, operators, constants)
    x = codes_for(graph)
    got = reference.run(graph, x, keep=True)
    for i in range(len(x)):
        flat = x[i].reshape(6, 2).tolist()
        moved = [flat[p] if p >= 0 else [-9, -9] for p in index]
        assert got["moved"][i].reshape(8, 2).tolist() == moved
        assert got["channels"][i].reshape(8, 4).tolist() == [row + row for row in moved]
        assert got["positions"][i].tolist() == moved[::-1] + flat


@pytest.mark.parametrize(
    ("tokens", "keys", "windows", "bias"),
    [(6, 6, 1, None), (6, 4, 1, (1, 1)), (6, 9, 3, (3, 2)), (6, 6, 3, (1, 2)), (4, 6, 2, (2, 1))],
)
def test_attention(tokens, keys, windows, bias):
    rng = np.random.default_rng(4)
    heads, size = 2, 3
    counts = {"q": tokens, "k": keys, "v": keys}
    tensors = [
        tensor("x", tokens, 5),
        tensor("context", keys, 5),
        *(tensor(n, count, 6) for n, count in counts.items()),
        tensor("y", tokens, 6),
    ]
    operators = [Gather(name="context", input="x", output="context")]
    operators += [
        Linear(name=n, input="x" if n == "q" else "context", output=n, drain=Drain(lo=-128, hi=127))
        for n in counts
    ]
    operators.append(
        Attention(
            name="a", input="q", keys="k", values="v", output="y", heads=heads, windows=windows,
            bias=bias is not None, lo=-120, hi=110,
        )
    )  # fmt: skip
    constants = {
        k: v for n in counts for k, v in (weights(rng, n, 6, 5) | drain_constants(rng, n, 6, 22)).items()
    }
    constants["context/index"] = rng.integers(0, tokens, keys).astype(np.int32)
    constants |= drain_constants(rng, "a", heads, 20) | {
        "a/m2": np.array([40000, 65535], np.uint16),
        "a/n2": np.array([15, 16], np.uint8),
        "a/exp": np.maximum(0, 254 - np.arange(256)).astype(np.uint8),
    }
    tq, tk = tokens // windows, keys // windows
    if bias is not None:
        constants["a/bias"] = rng.integers(-300, 300, (*bias, tq, tk)).astype(np.int16)
        constants["a/bias"][rng.random(constants["a/bias"].shape) < 0.2] = -32768
        constants["a/bias"][-1, -1, 0] = -32768  # a query that sees nothing
    graph = graph_of(tensors, operators, constants)
    got = reference.run(graph, codes_for(graph), keep=True)
    assert got["a/logits"].shape == got["a/exp"].shape == (3, heads, tokens, tk)
    assert got["a/row_m"].shape == got["a/row_n"].shape == (3, heads, tokens)
    for i, h, t in np.ndindex(3, heads, tokens):
        q, k, v = (got[n][i].astype(object).reshape(-1, heads, size) for n in counts)
        window = t // tq
        seen = range(window * tk, (window + 1) * tk)
        dots = [int((q[t, h] * k[j, h]).sum()) for j in seen]
        logits = [clip(drained(graph, operators[-1], d, h), -2048, 2047) for d in dots]
        hidden = [False] * tk
        if bias is not None:
            row = constants["a/bias"][window % bias[0], h % bias[1], t % tq].tolist()
            hidden = [b == -32768 for b in row]
            logits = [-32768 if b == -32768 else logit + b for logit, b in zip(logits, row, strict=True)]
        top = max((logit for logit, masked in zip(logits, hidden, strict=True) if not masked), default=0)
        exp = [
            0 if masked else max(0, 254 - min(top - logit, 255))
            for logit, masked in zip(logits, hidden, strict=True)
        ]
        total = sum(exp)
        assert got["a/logits"][i, h, t].tolist() == logits and got["a/exp"][i, h, t].tolist() == exp
        if total == 0:
            assert got["y"][i, t, h * size : (h + 1) * size].tolist() == [0] * size
            continue
        e = total.bit_length() - 1
        index = ((total << 8) >> e) - 256
        product = int(constants["a/m2"][h]) * int(2**24 / (256.5 + index) + 0.5)
        high = int(product >= 1 << 31)
        m = min((product + (1 << (14 + high))) >> (15 + high), 65535)
        n = int(constants["a/n2"][h]) + e + 1 - high
        assert (got["a/row_m"][i, h, t], got["a/row_n"][i, h, t]) == (m, n)
        for c in range(size):
            acc = sum(e_j * int(v[j, h, c]) for e_j, j in zip(exp, seen, strict=True))
            assert got["y"][i, t, h * size + c] == clip((acc * m + (1 << (n - 1))) >> n, -120, 110)


@pytest.fixture
def identity():
    """A graph that reads (2, 3, 2) images."""
    operator = Elementwise(name="e", input="x", output="y", drain=Drain(lo=-128, hi=127))
    constants = {
        "e/m": np.array([1 << 15], np.uint16),
        "e/n": np.array([15], np.uint8),
        "e/C": np.array([1 << 14]),
    }
    return graph_of(
        [tensor("x", 2, 3, 2, zero_point=5, scale=0.01), tensor("y", 2, 3, 2)], [operator], constants
    )


def test_batches_of_any_length(identity):
    codes = codes_for(identity, 130)
    assert np.array_equal(reference.run(identity, codes), codes)
    assert reference.run(identity, codes[:0]).shape == (0, 2, 3, 2)


def test_images_are_preprocessed_as_the_graph_says(identity):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 2)).astype(np.uint8)
    images[0, 0] = [[0, 255], [255, 0], [254, 1]]
    codes = reference.quantize_batch(identity, images)
    for value, code, channel in zip(images.flat, codes.flat, np.arange(images.size) % 2, strict=True):
        real = (value / 255 - PREPROCESSING.mean[channel]) / PREPROCESSING.std[channel]
        assert abs(clip(real / 0.01 + 5, -128, 127) - code) <= 0.5 + 1e-9
    assert np.array_equal(reference.quantize_batch(identity, images.astype(np.float32)), codes)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 3, 2)), r"batch for graph 'test' must have shape \(N, 2, 3, 2\), not \(2, 3, 2\)"),
        (np.zeros((1, 3, 2, 2)), r"must have shape \(N, 2, 3, 2\), not \(1, 3, 2, 2\)"),
        (np.zeros((1, 2, 3, 2), complex), "must be integer or float images, not complex128"),
        (np.full((1, 2, 3, 2), "a"), "must be integer or float images, not <U1"),
        (np.full((1, 2, 3, 2), np.nan), "must be finite, not NaN or infinite in 12 places"),
        (
            np.full((1, 2, 3, 2), 300.0),
            r"must have raw values up to 255, not 300; pass images before preprocessing",
        ),
    ],
)
def test_wrong_images_are_one_clear_error(identity, batch, message):
    with pytest.raises(reference.BatchError, match=message):
        reference.quantize_batch(identity, batch)


def test_wrong_codes_are_one_clear_error(identity):
    with pytest.raises(reference.BatchError, match="must be integers, not float64; use quantize_batch"):
        reference.run(identity, np.zeros((1, 2, 3, 2)))
    with pytest.raises(
        reference.BatchError, match=r"must be in -128\.\.127, not 0\.\.200; use quantize_batch"
    ):
        reference.run(identity, np.arange(12).reshape(1, 2, 3, 2) // 11 * 200)
    with pytest.raises(reference.BatchError, match="must have shape"):
        reference.run(identity, np.zeros((1, 2, 2, 2), int))
