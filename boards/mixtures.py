"""Rows in blocks of a mixture of schemes: the block that an array's lanes take at full speed, and graphs dealt out in it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from ..arch.accelerator import Accelerator
from ..arch.graph import Conv, Graph, Linear, Operator
from ..arch.schemes import Scheme, codebook

__all__ = ["Mixture", "RowBlock", "dense_layers", "reassigned", "row_block"]

Mixture = Mapping[Scheme, int]
"""Rows of each scheme, up to a factor."""
_LONGEST = 96
"""Most rows of a block that are `apart` from each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Of every whole block of successive rows of a layer, those with equal row % apart are of each scheme
    mixture[scheme] / apart times; rows after the last whole block are Fixed-8. The quantizer's `mixture` and `drain`."""

    mixture: Mixture
    apart: int

    @property
    def rows(self) -> int:
        """Of a block."""
        return sum(self.mixture.values())

    @property
    def fixed8(self) -> float:
        """Part of a whole block's rows that are Fixed-8."""
        return self.mixture[Scheme.FIXED8] / self.rows

    def share(self, outputs: int) -> float:
        """Part of a layer's rows that are Fixed-8."""
        whole = outputs // self.rows * self.rows
        return 1 - whole * (1 - self.fixed8) / outputs

    def held(self, outputs: int, accelerator: Accelerator) -> bool:
        """Whether every block of lanes of a layer finds lanes for its rows, whichever rows take which scheme."""
        lanes, drain = accelerator.lanes.by_scheme, accelerator.drain
        rows = np.arange(outputs)
        cell, window = rows // self.rows, rows // accelerator.lanes.total
        place = window * drain + rows % drain
        whole = cell < outputs // self.rows

        def most(scheme: Scheme) -> int:
            """Rows of a scheme that lanes of one residue could meet in a block of lanes."""
            count = self.mixture.get(scheme, 0) // self.apart
            pairs, counts = np.unique(np.stack([place, cell]), axis=1, return_counts=True)
            full = whole[np.searchsorted(cell, pairs[1])]
            ends = counts if scheme == Scheme.FIXED8 else 0
            counts = np.where(full, np.minimum(counts, count), ends)
            return int(np.bincount(pairs[0], weights=counts).max())

        others = [scheme for scheme in self.mixture if scheme != Scheme.FIXED8]
        # Of two schemes only Fixed-8 rows can lack lanes: the others may take what these leave.
        over = [max(0, most(s) - lanes.get(s, 0) // drain) for s in others] if len(others) > 1 else []
        return most(Scheme.FIXED8) + sum(over) <= lanes[Scheme.FIXED8] // drain


def dense_layers(graph: Graph) -> Iterator[tuple[Operator, int]]:
    """Layers whose rows follow a mixture, and their multiply-accumulates."""
    for operator in graph.operators:
        if isinstance(operator, Linear) or (isinstance(operator, Conv) and operator.groups == 1):
            yield operator, graph.macs(operator)


def row_block(graph: Graph, mixture: Mixture, accelerator: Accelerator) -> RowBlock:
    """The block whose rows find lanes in most of the work (`RowBlock.held`), and of those that with the most Fixed-8 rows, at
    least the mixture's; where none finds lanes, that with the fewest."""
    if len(mixture) == 1:
        return RowBlock(mixture={Scheme.FIXED8: 1}, apart=1)
    outputs: dict[int, int] = {}
    for operator, macs in dense_layers(graph):
        count = len(graph.constant(operator, "weight"))
        outputs[count] = outputs.get(count, 0) + macs

    def key(block: RowBlock) -> tuple[float, float]:
        whole = sum(outputs.values())
        held = sum(macs for count, macs in outputs.items() if block.held(count, accelerator)) / whole
        share = sum(block.share(count) * macs for count, macs in outputs.items()) / whole
        return round(held, 2), share if held else -share

    blocks = [RowBlock(mixture=accelerator.lanes.by_scheme, apart=accelerator.drain)]
    return max([*blocks, *_blocks(mixture, accelerator.drain)], key=key)


def _blocks(mixture: Mixture, drain: int) -> Iterator[RowBlock]:
    """Blocks with at least the mixture's Fixed-8 rows."""
    whole = sum(mixture.values())
    period = min(_LONGEST, whole // math.gcd(*mixture.values()))
    apart = drain
    while apart:
        for rows in range(2, period + 1):
            counts = {s: rows * part // whole for s, part in mixture.items() if s != Scheme.FIXED8}
            if all(counts.values()):
                counts = {Scheme.FIXED8: rows - sum(counts.values()), **counts}
                yield RowBlock(mixture={s: count * apart for s, count in counts.items()}, apart=apart)
        apart //= 2


def reassigned(graph: Graph, rows: RowBlock, seed: int = 0) -> Graph:
    """The graph with rows in blocks, dealt out at random.

    Codes are moved to the nearest of the new scheme: the shapes, instructions and cycles are those of a graph that is
    quantized so, its answers are not.
    """
    random, books = np.random.default_rng(seed), {scheme: codebook(scheme) for scheme in rows.mixture}
    slots = np.repeat(
        np.array(list(rows.mixture), np.uint8), [count // rows.apart for count in rows.mixture.values()]
    )
    constants = dict(graph.constants)
    for operator in graph.operators:
        if not isinstance(operator, Linear | Conv):
            continue
        codes = graph.constant(operator, "weight")
        schemes = np.full(len(codes), Scheme.FIXED8, np.uint8)
        if not (isinstance(operator, Conv) and operator.groups > 1):
            whole = len(codes) // rows.rows
            cells = np.tile(slots, (whole, rows.apart, 1))
            schemes[: whole * rows.rows] = random.permuted(cells, axis=2).transpose(0, 2, 1).ravel()
        moved = codes.copy()
        for scheme in set(rows.mixture) - {Scheme.FIXED8}:
            book, chosen = books[scheme], schemes == scheme
            middle = (book[1:] + book[:-1]) / 2
            moved[chosen] = book[np.searchsorted(middle, codes[chosen])]
        constants |= {f"{operator.name}/weight": moved, f"{operator.name}/scheme": schemes}
    return dataclasses.replace(graph, constants=constants)
