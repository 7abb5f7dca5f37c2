"""The search for the fastest accelerator."""

import dataclasses
import re

import numpy as np
import pytest

from terrazzo.arch.schemes import Scheme
from terrazzo.boards import BOARDS, ZCU102, BoardError, estimate, mixed_accelerator, quads_accelerator
from terrazzo.boards.mixtures import reassigned
from terrazzo.boards.search import Budget, Version, search
from terrazzo.boards.shapes import scratchpad_bytes, shapes, sized, with_moments
from terrazzo.boards.work import Work
from terrazzo.compiler import compile
from terrazzo.sim.cycle import predict
from terrazzo.synthetic import deit, resnet18

FIXED8 = {Scheme.FIXED8: 1}
MIXED = {Scheme.FIXED8: 1, Scheme.FIXED4: 1}
FEW = {"columns": 4, "depth": 8, "drain": 2}


def versions(graph, *mixtures):
    return [Version(name=str(len(mixture)), graph=graph, mixture=mixture) for mixture in mixtures]


@pytest.fixture(scope="module")
def graph():
    return deit(32, 1, 2, image=64)


@pytest.fixture(scope="module")
def found(graph):
    tried = versions(graph, FIXED8, MIXED)
    return search(tried, ZCU102, budget=Budget(lut=0.2), fixed=FEW, evaluations=12)


def test_every_design_is_within_the_budget_and_not_below_its_bound(found):
    assert len(found.designs) >= 4
    for design in found.designs:
        need = estimate(design.accelerator, ZCU102)
        assert need == design.need and need.lut <= 0.2 * ZCU102.budget.lut
        assert design.bound <= design.cycles and 0 < design.utilization <= 1
        assert {name: getattr(design.accelerator, name) for name in FEW} == FEW


def test_the_best_takes_the_cycles_that_it_says(graph, found):
    best = found.best
    program = compile(reassigned(graph, best.rows), best.accelerator)
    assert predict(program, ZCU102.interface.memory).cycles == best.cycles
    assert best.cycles == min(design.cycles for design in found.designs)


def test_front(found):
    def costs(d):
        return np.array([d.cycles, d.need.lut, d.need.ff, d.need.dsp, d.need.bram])

    front = found.front
    for design in found.designs:
        beaten = any((costs(o) <= costs(design)).all() and (costs(o) < costs(design)).any() for o in front)
        assert beaten != (design in front)


def test_all_judged_leaves_no_gap(graph):
    fixed = FEW | {"vector": 2, "scratchpad_rows": 2048, "weight_rows": 1024}
    found = search(versions(graph, FIXED8), ZCU102, budget=Budget(lut=0.12), fixed=fixed, evaluations=80)
    assert found.gap == 0 and found.open_bound is None
    few = search(versions(graph, FIXED8), ZCU102, budget=Budget(lut=0.2), fixed=FEW, evaluations=4)
    assert 0 < few.gap < 1


def test_hand_made_machines_are_tried():
    """Their lanes and widths are among the shapes; which of these is judged first is a guess."""
    for graph, mixture, made in (
        (deit(384, 1, 6), {Scheme.FIXED8: 1, Scheme.FIXED4: 2}, mixed_accelerator()),
        (
            deit(384, 1, 6, bits=4, attended=4),
            {Scheme.FIXED8: 1, Scheme.FIXED4: 15},
            quads_accelerator(),
        ),
    ):
        fixed = {"columns": made.columns, "depth": made.depth, "drain": made.drain, "vector": made.vector}
        found = {shape.lanes for shape in shapes(ZCU102, Work(graph), mixture, fixed, 2394)}
        # DSPs that are left have three Fixed-4 products each.
        assert made.lanes in {dataclasses.replace(lanes, fixed4_triples=0) for lanes in found}


def test_parts_that_a_graph_does_not_need_are_left_out():
    """None of them in a network of convolutions, slots in none; what is fixed is kept."""
    fixed = {"columns": 4, "depth": 8, "drain": 2, "vector": 2}
    parts = ("norm_rows", "row_scales", "table_pages", "operand_slots", "index_rows", "row_maxima")
    most = tuple(getattr(ZCU102.default, name) for name in parts[:3])
    for graph, given, expected in (
        (resnet18(bits=5), {}, (0, 0, 0, 0, 0, 0)),
        (resnet18(bits=5), {"norm_rows": 8}, (8, 0, 0, 0, 0, 0)),
        # 17 tokens are five tiles of a head, and six heads' maxima are kept.
        (deit(32, 2, 2, image=64), {}, (*most, 0, 0, 32)),
        (deit(32, 2, 2, image=64), {"row_maxima": 0, "index_rows": 64}, (*most, 0, 64, 0)),
    ):
        shape = next(shapes(ZCU102, Work(graph), FIXED8, fixed | given, 2394))
        assert tuple(getattr(shape, name) for name in parts) == expected


def test_memories():
    """As large as there is room for; first those that hold what is alive. Programs have their room, and parameters half of theirs
    where that leaves room for more weights."""
    work = Work(deit(96, 1, 3, image=64))
    shape = next(shapes(ZCU102, work, FIXED8, {"columns": 8, "depth": 16}, 2394))

    def holds(need):
        return need.bram <= 400

    for alive in (0, 300_000, 600_000):
        work.alive = alive
        found = sized(shape, ZCU102, holds, {}, work)
        keys = [(scratchpad_bytes(one) < alive, one.weight_rows < 1024) for one in found]
        assert found and keys == sorted(keys)
        assert all(holds(estimate(one, ZCU102)) for one in found)
        for one in found:
            more = dataclasses.replace(one, weight_rows=2 * one.weight_rows)
            assert one.weight_rows == 8192 or not holds(estimate(more, ZCU102))
            assert work.instructions <= one.instructions < work.instructions + 512
    only = sized(shape, ZCU102, holds, {"scratchpad_rows", "weight_rows", "instructions"}, work)
    assert only == [shape]
    assert sized(shape, ZCU102, lambda need: False, {}, work) == []

    fixed = {"scratchpad_rows", "instructions"}
    need = estimate(dataclasses.replace(shape, weight_rows=1024), ZCU102).bram
    for room, halved in ((0, 1), (-1, 2)):
        (one,) = sized(shape, ZCU102, lambda need_, most=need + room: need_.bram <= most, fixed, work)
        assert (one.weight_rows, halved * one.param_rows) == (1024, shape.param_rows)
        assert halved * one.norm_rows == shape.norm_rows


def test_row_moments_are_tried_with_what_room_there_is(graph, found):
    """With 17 tokens on 4 columns four LayerNorms' inputs have 20 tiles, two have 10."""
    assert any(design.accelerator.row_moments for design in found.designs)
    work, without = Work(graph), Work(resnet18(bits=5))
    a = next(d.accelerator for d in found.designs if d.accelerator.weight_rows > 512)
    a = dataclasses.replace(a, row_moments=0)
    need = estimate(a, ZCU102)

    def made(room, fixed=(), work=work):
        return with_moments(a, ZCU102, lambda other: other.bram <= need.bram + room, fixed, work)

    assert made(100) == dataclasses.replace(a, row_moments=32)
    assert made(100, ["row_moments"]) is made(100, work=without) is made(-need.bram) is None
    fewer = made(-1)
    assert fewer.row_moments == 32 and fewer.weight_rows < a.weight_rows
    assert estimate(dataclasses.replace(fewer, weight_rows=a.weight_rows), ZCU102).bram > need.bram - 1
    assert made(-1, ["weight_rows"]) is None

    once, twice = (work.cycles(one)[1] for one in (made(100), a))
    assert twice - once == work.normed(a) > 0


@pytest.mark.parametrize("fixed", [{"operand_slots": 1}, {"row_scales": 0, "row_maxima": 8, "drain": 0}])
def test_illegal_parameters_are_refused(fixed):
    """Also where one of them, or its nearest legal value, is 0."""
    asked = ", ".join(f"{name}={value}" for name, value in fixed.items())
    nearest = ", ".join(rf"{name}=\d+" for name in fixed)
    match = rf"with {asked}, but no accelerator has these parameters; the nearest that fits has {nearest}$"
    with pytest.raises(BoardError, match=match):
        search(versions(deit(32, 1, 2, image=64), FIXED8), BOARDS["ulx3s-85f"], fixed=fixed)


def test_many_orders_are_no_slower(graph):
    fixed = FEW | {"vector": 2, "scratchpad_rows": 1024, "weight_rows": 512}
    plain, thorough = (
        search(
            versions(graph, FIXED8),
            ZCU102,
            budget=Budget(lut=0.12),
            fixed=fixed,
            evaluations=4,
            thorough=many,
        )
        for many in (False, True)
    )
    assert thorough.best.cycles <= plain.best.cycles
    assert thorough.best.accelerator.multipliers == plain.best.accelerator.multipliers


def test_fixed_instructions_are_kept(graph):
    fixed = FEW | {"vector": 2, "scratchpad_rows": 1024, "weight_rows": 512, "instructions": 1000}
    found = search(versions(graph, FIXED8), ZCU102, budget=Budget(lut=0.12), fixed=fixed, evaluations=4)
    assert all(design.accelerator.instructions == 1000 for design in found.designs)


def test_what_cannot_fit_or_run_is_refused(graph):
    """Each error has the nearest that works, which does."""

    def refused(match, budget=None, fixed=FEW, evaluations=4, graph=graph):
        with pytest.raises(BoardError, match=match) as caught:
            search(versions(graph, FIXED8), ZCU102, budget=budget, fixed=fixed, evaluations=evaluations)
        return str(caught.value)

    def runs(budget=None, fixed=FEW):
        return search(versions(graph, FIXED8), ZCU102, budget=budget, fixed=fixed, evaluations=4)

    text = refused(
        r"smallest takes [\d.]+% of its LUT \(1% allowed\); one of .* fits with --lut \d+$",
        Budget(lut=0.01),
        {},
    )
    assert runs(Budget(lut=int(re.search(r"--lut (\d+)", text)[1]) / 100), {}).designs

    text = refused(
        r"must hold an accelerator with columns=9, depth=8, but no accelerator .* fits has columns=\d+, depth=\d+$",
        None,
        {"columns": 9, "depth": 8},
    )
    nearest = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", text.split("nearest")[1])}
    assert nearest.keys() == {"columns", "depth"} and runs(None, nearest).designs

    refused(r"needs 32 bus bytes, zcu102 has 16\. .* bus_bytes=16\.", None, FEW | {"bus_bytes": 32})
    small = {"scratchpad_rows": 8, "weight_rows": 512}
    text = refused(
        r"none of \d+ accelerators .* scratchpad .* nearest that runs it has scratchpad_rows=\d+, weight_rows=\d+",
        None,
        FEW | small,
    )
    rows = {name: int(value) for name, value in re.findall(r"(scratchpad_rows|weight_rows)=(\d+)", text)}
    assert runs(None, FEW | rows).designs
