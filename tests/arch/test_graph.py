"""Graph files survive a round trip, and every broken graph or file is one clear error."""

import dataclasses
import pickle

import numpy as np
import pytest

from terrazzo.arch import files
from terrazzo.arch.files import FileError
from terrazzo.arch.graph import (
    Attention,
    Concat,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Gather,
    Graph,
    GraphError,
    LayerNorm,
    Linear,
    Multiply,
    Preprocessing,
    Residual,
    Second,
    Tensor,
)


def drained(name, channels):
    return {
        f"{name}/m": np.full(channels, 40000, np.uint16),
        f"{name}/n": np.full(channels, 20, np.uint8),
        f"{name}/C": np.full(channels, 1 << 19, np.int64),
    }


def make(**changes):
    """Patch convolution with a class token and position constant, LayerNorm, linear."""
    tensors = (
        Tensor(name="input", shape=(4, 4, 1), dtype="s8", scale=0.1, zero_point=-3, bits=8),
        Tensor(name="pos", shape=(5, 6), dtype="s16", scale=0.001, bits=16),
        Tensor(name="tokens", shape=(5, 6), dtype="s16", scale=0.002, bits=16),
        Tensor(name="tokens.s8", shape=(5, 6), dtype="s8", scale=0.2, zero_point=4, bits=8),
        Tensor(name="norm", shape=(5, 6), dtype="s8", scale=0.02, bits=8),
        Tensor(name="logits", shape=(5, 3), dtype="s16", scale=0.01, bits=16),
    )
    second = Second(tensor="tokens.s8", m=40000, n=22, constant=1 << 21, lo=-128, hi=127)
    patch = Drain(lo=-32768, hi=32767, residual=Residual(tensor="pos", m=32768, n=16), second=second)
    operators = (
        Constant(name="pos", output="pos"),
        Conv(name="patch", input="input", output="tokens", stride=(2, 2), prefix=1, drain=patch),
        LayerNorm(name="ln", input="tokens", output="norm", n=12, eps=5, lo=-128, hi=127),
        Linear(name="head", input="norm", output="logits", drain=Drain(lo=-32768, hi=32767)),
    )
    constants = {
        "pos/value": np.arange(30, dtype=np.int16).reshape(5, 6),
        "patch/weight": np.ones((6, 2, 2, 1), np.int8),
        "patch/scheme": np.array([0, 1, 2, 3, 0, 0], np.uint8),
        "head/weight": np.ones((3, 6), np.int8),
        "head/scheme": np.zeros(3, np.uint8),
        "ln/g": np.ones(6, np.int16),
        "ln/b": np.ones(6, np.int64),
        **drained("patch", 6),
        **drained("head", 3),
    }
    fields = {
        "name": "tiny",
        "input": "input",
        "output": "logits",
        "preprocessing": Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,), resize=4),
        "tensors": tensors,
        "operators": operators,
        "constants": constants,
        "labels": ("a", "b", "c"),
    }
    return Graph(**fields | changes)


def test_round_trip(tmp_path):
    graph = make()
    loaded = Graph.load(graph.save(tmp_path / "tiny.graph"))
    for field in dataclasses.fields(Graph):
        if field.name != "constants":
            assert getattr(loaded, field.name) == getattr(graph, field.name), field.name
    assert loaded.constants.keys() == graph.constants.keys()
    for name, array in graph.constants.items():
        assert loaded.constants[name].dtype == array.dtype and np.array_equal(loaded.constants[name], array)


def test_same_graph_same_bytes(tmp_path):
    first, second = (make().save(tmp_path / name).read_bytes() for name in ("a", "b"))
    assert first == second


def test_macs():
    graph = make()
    assert {o.name: graph.macs(o) for o in graph.operators} == {
        "pos": 0, "patch": 4 * 4 * 6, "ln": 0, "head": 5 * 6 * 3,
    }  # fmt: skip


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_files(tmp_path, keep):
    data = make().save(tmp_path / "tiny.graph").read_bytes()
    size = int(len(data) * keep) if isinstance(keep, float) else keep
    (tmp_path / "cut.graph").write_bytes(data[:size])
    with pytest.raises(FileError, match=r"cut\.graph: graph file must be a whole safetensors file"):
        Graph.load(tmp_path / "cut.graph")


def test_foreign_files(tmp_path):
    path = tmp_path / "x.graph"
    with pytest.raises(FileError, match=r"x\.graph: graph file must be readable: No such file"):
        Graph.load(path)
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    with pytest.raises(FileError, match="must be a whole safetensors file"):
        Graph.load(path)
    files.write_bundle(path, "program", {}, {"a": np.zeros(2)})
    with pytest.raises(FileError, match="must be a Terrazzo graph, not program"):
        Graph.load(path)
    files.write_bundle(path, "graph", {"version": 99}, {"a": np.zeros(2)})
    with pytest.raises(FileError, match=r"version must be 1, not 99\. Quantize again"):
        Graph.load(path)
    files.write_bundle(path, "graph", {"version": 1, "name": 5}, {"a": np.zeros(2)})
    with pytest.raises(FileError, match="graph header field name"):
        Graph.load(path)


def test_nothing_is_left_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make().save(tmp_path / "tiny.graph")
    assert list(tmp_path.iterdir()) == []


def without(name):
    constants = dict(make().constants)
    del constants[name]
    return constants


def tensors(name, /, **changes):
    return tuple(dataclasses.replace(t, **changes) if t.name == name else t for t in make().tensors)


def operators(name, /, **changes):
    return tuple(dataclasses.replace(o, **changes) if o.name == name else o for o in make().operators)


BROKEN = {
    "missing constant": ({"constants": without("head/n")}, "operator head: constant n must be present"),
    "wrong type": (
        {"constants": make().constants | {"head/C": np.zeros(3, np.int32)}},
        "operator head: constant C must be int64, not int32",
    ),
    "wrong constant": (
        {"constants": make().constants | {"pos/value": np.zeros((4, 6), np.int16)}},
        r"operator pos: constant value must have shape \(5, 6\), not \(4, 6\)",
    ),
    "foreign code": (
        {"constants": make().constants | {"patch/weight": np.full((6, 2, 2, 1), 3, np.int8)}},
        "operator patch: row 2 must hold codes of its scheme 2",
    ),
    "zero point of s16": (
        {"tensors": tensors("pos", zero_point=1)},
        "tensor pos: an s16 tensor has no zero point",
    ),
    "scale": ({"tensors": tensors("pos", scale=-1.0)}, "tensor pos: scale must be positive and finite"),
    "bits": ({"tensors": tensors("norm", bits=9)}, r"tensor norm: bits must be 4\.\.8 \(s8\)"),
    "shape": (
        {"tensors": tensors("norm", shape=(5, 7))},
        r"operator ln: output norm must have shape \(5, 6\), not \(5, 7\)",
    ),
    "order": (
        {"operators": make().operators[::-1]},
        "operator head: reads norm, which must be written before",
    ),
    "twice": (
        {
            "operators": (
                *make().operators,
                Elementwise(name="e", input="norm", output="norm", drain=Drain(lo=0, hi=1)),
            )
        },
        "operator e: writes norm, which must be written once",
    ),
    "names": ({"operators": operators("ln", name="head")}, "operator head: name must be unique"),
    "eps": ({"operators": operators("ln", eps=0)}, "operator ln: LayerNorm needs s16 input .* eps >= 1"),
    "dilation": (
        {"operators": operators("patch", dilation=(0, 1))},
        "operator patch: stride, dilation and groups must be at least 1",
    ),
    "dilated shape": (
        {"operators": operators("patch", dilation=(2, 1))},
        r"operator patch: output tokens must have shape \(3, 6\), not \(5, 6\)",
    ),
    "output": ({"output": "nothing"}, "output nothing must be tensors of the graph"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs(case):
    changes, message = BROKEN[case]
    with pytest.raises(GraphError, match=message):
        make(**changes)


def test_all_problems_are_listed():
    with pytest.raises(GraphError, match=r"(?s)tensor pos: scale.*constant n must be present"):
        make(tensors=tensors("pos", scale=0.0), constants=without("head/n"))


def moves(operator, *shapes, constants=None, zero_points=(0, 0, 0)):
    """A graph of x (4, 2, 6), the 8 tokens `t`, `w` with their 16 bits, and `operator`, which writes y of shape
    shapes[0]."""
    wide = Elementwise(name="w", input="t", output="w", drain=Drain(lo=-9, hi=9))
    z = dict(zip("xty", zero_points, strict=True))
    fields = {"dtype": "s8", "scale": 0.1, "bits": 8}
    return Graph(
        name="moves",
        input="x",
        output="y",
        preprocessing=Preprocessing(scale=1 / 255, mean=(0.5,), std=(0.5,)),
        tensors=(
            Tensor(name="x", shape=(4, 2, 6), zero_point=z["x"], **fields),
            Tensor(name="t", shape=(8, 6), zero_point=z["t"], **fields),
            Tensor(name="w", shape=(8, 6), dtype="s16", scale=0.1, bits=16),
            Tensor(name="y", shape=shapes[0], zero_point=z["y"], **fields),
        ),
        operators=(Gather(name="t", input="x", output="t"), wide, operator),
        constants={"t/index": np.arange(8, dtype=np.int32)} | drained("w", 1) | (constants or {}),
    )


INDEX = {"g/index": np.arange(-1, 5, dtype=np.int32)}
HEADS = drained("a", 2) | {
    "a/m2": np.full(2, 40000, np.uint16), "a/n2": np.full(2, 20, np.uint8), "a/exp": np.zeros(256, np.uint8),
    "a/bias": np.zeros((2, 1, 4, 4), np.int16),
}  # fmt: skip


def attends(**fields):
    usual = {"input": "t", "heads": 2, "windows": 2, "bias": True}
    return Attention(name="a", keys="t", values="t", output="y", lo=-127, hi=127, **usual | fields)


def test_moves_round_trip(tmp_path):
    graphs = [
        moves(Gather(name="g", input="x", output="y"), (2, 3, 6), constants=INDEX),
        moves(Concat(name="c", inputs=("t", "t"), output="y"), (8, 12)),
        moves(Concat(name="c", inputs=("t", "x"), output="y", axis="positions"), (16, 6)),
        moves(Multiply(name="m", input="t", other="t", output="y", drain=Drain(lo=0, hi=1)), (8, 6),
              constants=drained("m", 1)),
        moves(attends(), (8, 6), constants=HEADS),
    ]  # fmt: skip
    for graph in graphs:
        loaded = Graph.load(graph.save(tmp_path / "moves.graph"))
        assert loaded.operators == graph.operators and loaded.constants.keys() == graph.constants.keys()
    assert graphs[-1].macs(graphs[-1].operators[-1]) == 2 * 8 * 4 * 6


MOVES = {
    "index out of range": (
        (Gather(name="g", input="x", output="y"), (1, 6)),
        {"constants": {"g/index": np.array([8], np.int32)}},
        r"operator g: index must be in -1\.\.7, not 8\.\.8",
    ),
    "index of another length": (
        (Gather(name="g", input="x", output="y"), (5, 6)),
        {"constants": INDEX},
        r"operator g: constant index must have shape \(5,\), not \(6,\)",
    ),
    "gathered channels": (
        (Gather(name="g", input="x", output="y"), (6, 5)),
        {"constants": INDEX},
        "operator g: output y must have 6 channels, not 5",
    ),
    "another zero point": (
        (Gather(name="g", input="x", output="y"), (6, 6)),
        {"constants": INDEX, "zero_points": (3, 3, 4)},
        "operator g: input x must have y's type, bits, scale and zero point",
    ),
    "one input": (
        (Concat(name="c", inputs=("t",), output="y"), (8, 6)),
        {},
        "operator c: inputs must be two or more tensors, not 1",
    ),
    "other positions": (
        (Concat(name="c", inputs=("t", "x"), output="y"), (8, 12)),
        {},
        r"operator c: input x must have t's positions \(8,\), not \(4, 2\)",
    ),
    "concatenated channels": (
        (Concat(name="c", inputs=("t", "t"), output="y"), (8, 11)),
        {},
        r"operator c: output y must have shape \(8, 12\), not \(8, 11\)",
    ),
    "concatenated positions": (
        (Concat(name="c", inputs=("t", "x"), output="y", axis="positions"), (15, 6)),
        {},
        r"operator c: output y must have 16 positions of 6 channels, not \(15, 6\)",
    ),
    "factor of another shape": (
        (Multiply(name="m", input="t", other="x", output="y", drain=Drain(lo=0, hi=1)), (8, 6)),
        {"constants": drained("m", 1)},
        r"operator m: other x must have the shape \(8, 6\) of t or one position, not \(4, 2, 6\)",
    ),
    "factor with zero point": (
        (Multiply(name="m", input="t", other="t", output="y", drain=Drain(lo=0, hi=1)), (8, 6)),
        {"constants": drained("m", 1), "zero_points": (2, 2, 0)},
        "operator m: factor t must have no zero point, not 2",
    ),
    "two wide factors": (
        (Multiply(name="m", input="w", other="w", output="y", drain=Drain(lo=0, hi=1)), (8, 6)),
        {"constants": drained("m", 1)},
        "operator m: one of the factors w and w must be s8",
    ),
    "product with residual": (
        (
            Multiply(
                name="m",
                input="t",
                other="t",
                output="y",
                drain=Drain(lo=0, hi=1, residual=Residual(tensor="t", m=1, n=1)),
            ),
            (8, 6),
        ),
        {"constants": drained("m", 1)},
        "operator m: a product must have no residual",
    ),
    "queries with zero point": (
        (attends(), (8, 6)),
        {"constants": HEADS, "zero_points": (2, 2, 0)},
        r"operator a: t must be s8 tokens \(T, C\) without zero point",
    ),
    "queries of an image": (
        (attends(input="x"), (8, 6)),
        {"constants": HEADS},
        r"operator a: x must be s8 tokens \(T, C\) without zero point",
    ),
    "windows": (
        (attends(windows=3), (8, 6)),
        {"constants": HEADS},
        "operator a: 3 windows must divide 8 queries and 8 keys",
    ),
    "heads": (
        (attends(heads=4), (8, 6)),
        {"constants": HEADS},
        "operator a: channels of queries and keys must be equal, and they and those of values a multiple of 4 heads",
    ),
    "shape of the bias": (
        (attends(windows=4), (8, 6)),
        {"constants": HEADS},
        r"operator a: constant bias must have shape \(1 or 4, 1 or 2, 2, 2\), not \(2, 1, 4, 4\)",
    ),
    "range of the bias": (
        (attends(), (8, 6)),
        {"constants": HEADS | {"a/bias": np.full((1, 1, 4, 4), -32767, np.int16)}},
        r"operator a: constant bias must be -32768 or in -30719\.\.30720, not -32767\.\.-32767",
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_broken_moves(case):
    arguments, more, message = MOVES[case]
    with pytest.raises(GraphError, match=message):
        moves(*arguments, **more)
