"""Graph files survive a round trip, and every broken graph or file is one clear error."""

import dataclasses
import pickle

import numpy as np
import pytest

from terrazzo.arch import files
from terrazzo.arch.files import FileError
from terrazzo.arch.graph import (
    Constant,
    Conv,
    Drain,
    Elementwise,
    Graph,
    GraphError,
    LayerNorm,
    Linear,
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
