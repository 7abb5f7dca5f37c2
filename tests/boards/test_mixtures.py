"""Blocks of rows that lanes take at full speed."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.boards import mixed_accelerator
from terrazzo.boards.mixtures import RowBlock, dense_layers, reassigned, row_block
from terrazzo.compiler.rows import segments
from terrazzo.synthetic import deit

F8, F4, P4 = Scheme.FIXED8, Scheme.FIXED4, Scheme.POT4


@pytest.fixture(scope="module")
def graph():
    return deit(96, 1, 3, image=64)


def lanes(drain: int, **counts: int) -> Accelerator:
    return dataclasses.replace(mixed_accelerator(), drain=drain, columns=2, lanes=Lanes(**counts))


def blocks(graph, accelerator: Accelerator) -> dict[str, tuple[int, int]]:
    """Blocks of lanes that a layer takes on the machine, and the fewest."""
    found = {}
    for operator, _ in dense_layers(graph):
        schemes = graph.constant(operator, "scheme")
        parts = segments(np.arange(len(schemes)), schemes, accelerator, 1)
        found[operator.name] = sum(part.blocks for part in parts), -(-len(schemes) // accelerator.lanes.total)
    return found


@pytest.mark.parametrize(
    "mixture, accelerator",
    [
        ({F8: 1, F4: 2}, lanes(4, fixed8=16, fixed4=16)),
        ({F8: 1, F4: 2}, lanes(2, fixed8=8, fixed4=16)),
        ({F8: 1, F4: 15}, lanes(4, fixed8=8, fixed4=40)),
        ({F8: 3, F4: 61}, lanes(4, fixed8=8, fixed4=24)),
        ({F8: 1, F4: 1, P4: 2}, lanes(2, fixed8=16, fixed4=8, pot4=24)),
    ],
)
def test_rows_find_lanes(graph, mixture, accelerator):
    """By the compiler's own assignment, for rows dealt out twice at random; with no more 4-bit rows than asked for."""
    block = row_block(graph, mixture, accelerator)
    assert block.fixed8 >= mixture[F8] / sum(mixture.values())
    for seed in range(2):
        moved = reassigned(graph, block, seed)
        for operator, _ in dense_layers(moved):
            codes, schemes = moved.constant(operator, "weight"), moved.constant(operator, "scheme")
            for scheme in set(mixture):
                assert np.isin(codes[schemes == scheme], codebook(scheme)).all()
            for start in range(0, len(schemes) - block.rows + 1, block.rows):
                cell = schemes[start : start + block.rows].reshape(-1, block.apart)
                for scheme, count in block.mixture.items():
                    assert ((cell == scheme).sum(axis=0) == count // block.apart).all()
        wide = {name for name, (used, fewest) in blocks(moved, accelerator).items() if used > fewest}
        assert not wide - {"head"}


def test_blocks_that_are_not_held_are_told(graph):
    """1 of 16 rows is Fixed-8, but eight of them may stand together in a block of lanes that has four."""
    machine = lanes(4, fixed8=4, fixed4=28)
    long = RowBlock(mixture={F8: 8, F4: 120}, apart=4)
    assert not long.held(384, machine)
    assert RowBlock(mixture={F8: 4, F4: 28}, apart=4).held(384, machine)
    assert not RowBlock(mixture={F8: 4, F4: 28}, apart=4).held(400, machine)
