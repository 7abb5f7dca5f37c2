"""Layers whose operands have too many bits for lanes with four products in a multiplier leave these out."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.graph import Graph
from terrazzo.compiler import compile, lower
from terrazzo.compiler.widths import NARROW, code_limits, refusing, within
from terrazzo.sim import functional, reference

from .. import tiny
from ..graphs import Builder, random_codes

QUADS = dataclasses.replace(
    tiny.MACHINE, lanes=Lanes(fixed8=4, fixed4=4, fixed4_quads=2, fixed4_dynamic=2), drain=2
)


def narrowed(graph: Graph) -> Graph:
    """The graph with everything behind the input clamped to what the lanes take."""
    operators = []
    for operator in graph.operators:
        limits = {"lo": NARROW[0], "hi": NARROW[1]}
        if getattr(operator, "drain", None) is not None:
            drain = operator.drain
            second = drain.second and dataclasses.replace(drain.second, **limits)
            operator = dataclasses.replace(
                operator, drain=dataclasses.replace(drain, second=second, **limits)
            )
        elif hasattr(operator, "lo"):
            operator = dataclasses.replace(operator, **limits)
        operators.append(operator)
    tensors = [dataclasses.replace(tensor, zero_point=0) for tensor in graph.tensors]
    return dataclasses.replace(graph, operators=tuple(operators), tensors=tuple(tensors))


@pytest.mark.parametrize("narrow", [False, True])
def test_wide_operands_meet_no_lanes_of_four_products(monkeypatch, narrow):
    """With 8-bit activations no layer uses them; with narrow ones all but those that read the image."""
    graph = narrowed(tiny.graph()) if narrow else tiny.graph()
    emitted, emit = {}, lower.emit

    def spy(tensors, tag, name, **fields):
        if name in tensors.rows_by_kind:
            emitted[name] = np.concatenate([part.lanes.ravel() for part in fields["parts"]])
        return emit(tensors, tag, name, **fields)

    monkeypatch.setattr(lower, "emit", spy)
    program = compile(graph, QUADS)
    using = {name for name, lanes in emitted.items() if set(lanes) & set(QUADS.lanes.quads)}
    limits = code_limits(graph)
    inputs = {op.name: op.input for op in graph.operators if op.name in emitted}
    assert all(within(limits[inputs[name]], NARROW) for name in using)
    assert bool(using) == narrow
    assert not using & {name for name, x in inputs.items() if x == graph.input}
    codes = tiny.codes(2)
    outputs = functional.run(program, codes)
    np.testing.assert_array_equal(outputs, np.asarray(reference.run(graph, codes)).reshape(outputs.shape))


def test_lanes_in_luts_may_take_fewer_bits():
    """8 bits hold what layers read; beyond the lanes' bits rows go to the others."""
    lanes = dataclasses.replace(QUADS.lanes, fixed4=6, fixed4_quads=2, fixed4_operand_bits=5)
    luts, quads = set(range(4, 8)), {8, 9}
    assert refusing(lanes, (-16, 15)) == set()
    assert refusing(lanes, (-17, 15)) == refusing(lanes, (0, 16)) == luts
    assert refusing(lanes, (-33, 0)) == luts | quads
    assert refusing(dataclasses.replace(lanes, fixed4_operand_bits=8), (-128, 127)) == quads
    assert refusing(dataclasses.replace(lanes, fixed4_operand_bits=9), (0, 255)) == quads
    lanes, triples = dataclasses.replace(lanes, fixed4=9, fixed4_triples=3), {8, 9, 10}
    luts, quads = set(range(4, 8)), {11, 12}
    assert refusing(lanes, (-128, 127)) == luts | quads
    assert refusing(lanes, (0, 128)) == refusing(lanes, (-129, 0)) == luts | triples | quads
    a = dataclasses.replace(
        tiny.MACHINE, lanes=dataclasses.replace(tiny.MACHINE.lanes, fixed4_operand_bits=5)
    )
    graph, codes = tiny.graph(), tiny.codes(2)
    outputs = functional.run(compile(graph, a), codes)
    np.testing.assert_array_equal(outputs, np.asarray(reference.run(graph, codes)).reshape(outputs.shape))


DIGITS = dataclasses.replace(
    tiny.MACHINE,
    lanes=Lanes(fixed8=4, fixed4=12, fixed4_quads=6, fixed4_operand_bits=5, fixed4_digits=True),
)


def wide_layer(a: Accelerator) -> Graph:
    """64 outputs of tokens of 8 bits, in blocks of as many rows of each scheme as there are lanes."""
    b = Builder(3, (12, 40), a.lanes, a.drain, mixed=1)
    return b.graph(b.linear(b.input, 64), "wide")


def layer_work(program) -> tuple[set[int], int]:
    """What its MATRIX instructions say of digits, and the pairs of weights and operands for a tile."""
    found = [isa.decode(words) for words in program.instructions]
    found = [i for i in found if i.opcode == isa.Opcode.MATRIX]
    return {i.digits for i in found}, sum(i.blocks * i.chunks << i.digits for i in found)


def test_digits_take_wide_operands_to_narrow_lanes():
    """All lanes in twice the time instead of a quarter of them: the reference's outputs."""
    graph = wide_layer(DIGITS)
    program = compile(graph, DIGITS)
    assert layer_work(program) == ({1}, 4 * 2 * 5)
    codes = random_codes(graph, 2, 0)
    outputs = functional.run(program, codes)
    np.testing.assert_array_equal(outputs, np.asarray(reference.run(graph, codes)).reshape(outputs.shape))
    none = dataclasses.replace(DIGITS, lanes=dataclasses.replace(DIGITS.lanes, fixed4_digits=False))
    assert layer_work(compile(graph, none)) == ({0}, 16 * 5)


@pytest.mark.parametrize(
    "change",
    [
        {"operand_chunks": 4, "lanes": {"fixed8": 8, "fixed4": 24}},
        {"lanes": {"fixed4": 2, "fixed4_quads": 0}},
    ],
)
def test_digits_are_for_layers_that_gain_by_them(change):
    """Not where half as many blocks would take as long, or where the chunks of a block do not stay in the buffer."""
    lanes = dataclasses.replace(DIGITS.lanes, **change.get("lanes", {}))
    a = dataclasses.replace(DIGITS, **{**change, "lanes": lanes})
    graph = wide_layer(a)
    program = compile(graph, a)
    assert layer_work(program)[0] == {0}
    codes = random_codes(graph, 1, 0)
    outputs = functional.run(program, codes)
    np.testing.assert_array_equal(outputs, np.asarray(reference.run(graph, codes)).reshape(outputs.shape))
