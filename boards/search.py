"""The fastest accelerator for a model within a budget: candidates in the order of what their engines have to do, the cycle
model as judge, lower bounds to leave out the rest."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..arch.accelerator import Accelerator, AcceleratorError
from ..arch.graph import Attention, Conv, Graph, LayerNorm, Linear
from ..arch.schemes import Scheme, codebook
from ..compiler import CompileError, compile
from ..sim.cycle import predict
from .bandwidth import frame_bytes
from .board import Board, BoardError, Resources
from .fitting import estimate, require_interface, with_luts

__all__ = ["PARTS", "Budget", "Design", "Mixture", "Search", "reassigned", "search"]

Mixture = Mapping[Scheme, int]
"""Lanes of each scheme, up to a factor."""

WIDTHS = {"columns": (2, 4, 8, 16), "depth": (8, 16, 32), "drain": (2, 4, 8, 16), "vector": (2, 4, 8, 16)}
LANES = 256
"""Most lanes that are tried."""
SCRATCHPAD_BYTES = (1 << 20, 1 << 19, 1 << 18, 1 << 17)
WEIGHT_ROWS = (8192, 4096, 2048, 1024, 512)
INSTRUCTIONS = 512
"""Unit of the instruction memory's capacity, which follows the program."""
PARTS = (1.0, 0.75, 0.5, 0.25)
"""Parts of the budget that have a search of their own, for designs of every size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Parts of a board's resources that a design may take; what is left is for placement and the user's own logic."""

    lut: float = 0.85
    ff: float = 0.85
    dsp: float = 0.95
    bram: float = 0.90

    def __mul__(self, part: float) -> Budget:
        return Budget(**{name: part * value for name, value in dataclasses.asdict(self).items()})

    def holds(self, need: Resources, board: Board) -> bool:
        """Whether a need is within these parts of the board."""
        return all(
            getattr(need, name) <= part * getattr(board.budget, name)
            for name, part in dataclasses.asdict(self).items()
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """An accelerator that a model was compiled for."""

    accelerator: Accelerator
    mixture: Mixture
    need: Resources
    """By `fitting.estimate`."""
    cycles: int
    """Of a frame, by the cycle model."""
    bound: int
    """No program takes fewer."""
    moved_bytes: int
    """Of a frame, from and to DRAM."""
    macs: int

    @property
    def utilization(self) -> float:
        """Useful multiply-accumulates per multiplier and cycle."""
        return self.macs / (self.accelerator.multipliers * self.cycles)

    def dominates(self, other: Design) -> bool:
        """Whether this one is as good in cycles and every resource, and better in one."""
        mine, its = ((d.cycles, d.need.lut, d.need.ff, d.need.dsp, d.need.bram) for d in (self, other))
        return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What was found."""

    designs: tuple[Design, ...]
    """All that were judged, fastest first."""
    open_bound: int | None
    """The least bound of the candidates within the whole budget that were not judged; None if all were."""

    @property
    def best(self) -> Design:
        """The fastest."""
        return self.designs[0]

    @property
    def front(self) -> list[Design]:
        """Designs that no other dominates, fastest first."""
        return [d for d in self.designs if not any(other.dominates(d) for other in self.designs)]

    @property
    def gap(self) -> float:
        """Part of its cycles by which an unjudged candidate could be faster than the best, at the very most."""
        return 0.0 if self.open_bound is None else max(0.0, 1 - self.open_bound / self.best.cycles)


def search(
    graph: Graph,
    board: Board,
    mixtures: Sequence[Mixture],
    *,
    budget: Budget | None = None,
    fixed: Mapping[str, int] | None = None,
    evaluations: int = 48,
    progress: Callable[[str], None] = lambda text: None,
) -> Search:
    """The fastest accelerators for `graph` on `board`, and smaller ones.

    Rows of the graph are dealt out anew for each mixture (`reassigned`): cycles do not depend on codes. `fixed` holds
    parameters of `Accelerator` that are not searched. Each part of the budget in PARTS takes its share of the
    `evaluations`, those first whose engines have least to do, and leaves out what is slower than its best by its bound.
    Raises BoardError where no candidate fits or none compiles.
    """
    budget = budget or Budget()
    work = _Work(graph)
    dsp = budget.dsp * board.budget.dsp
    shapes = list(_shapes(board, mixtures, dict(fixed or {}), dsp, work.depthwise > 0))
    for shape, _ in shapes[:1]:
        require_interface(shape, board)
    if not any(budget.holds(estimate(shape, board), board) for shape, _ in shapes):
        raise BoardError(_nothing_fits(board, budget, [shape for shape, _ in shapes]))
    cycles = [work.cycles(shape) for shape, _ in shapes]
    ranked = sorted(range(len(shapes)), key=lambda i: (sum(cycles[i]), shapes[i][0].multipliers))
    judged: dict[Accelerator, Design | None] = {}
    reasons: collections.Counter[str] = collections.Counter()
    open_bounds = []
    for part in PARTS:
        left, best = -(-evaluations // len(PARTS)), math.inf
        for i in ranked:
            bound = max(cycles[i])
            if bound >= best:
                continue
            shape, mixture = shapes[i]
            for accelerator in _sized(shape, board, budget * part, set(fixed or ())):
                if accelerator not in judged and left == 0:
                    open_bounds += [bound] if part == PARTS[0] else []
                    break
                if accelerator not in judged:
                    left -= 1
                    try:
                        design = _judge(graph, accelerator, mixture, board, bound)
                        judged[accelerator] = design if budget.holds(design.need, board) else None
                        if judged[accelerator] is None:
                            reasons["its instructions do not fit"] += 1
                    except CompileError as error:
                        judged[accelerator] = None
                        reasons[str(error).splitlines()[-1].strip()] += 1
                    progress(_told(part, judged, accelerator))
                if judged[accelerator]:
                    best = min(best, judged[accelerator].cycles)
            if left == 0 and part != PARTS[0]:
                break
    designs = sorted((d for d in judged.values() if d), key=lambda d: (d.cycles, d.need.lut))
    if not designs:
        raise BoardError(
            f"{board.name}: none of {len(judged)} accelerators that fit can run {graph.name}; most often: "
            f"{reasons.most_common(1)[0][0]}"
        )
    least = [bound for bound in open_bounds if bound < designs[0].cycles]
    return Search(designs=tuple(designs), open_bound=min(least, default=None))


def _told(part: float, judged: dict[Accelerator, Design | None], accelerator: Accelerator) -> str:
    design = judged[accelerator]
    found = f"{design.cycles:,} cycles" if design else "does not compile"
    widths = f"{accelerator.lanes.total} lanes x {accelerator.columns} columns x depth {accelerator.depth}"
    return f"{part:.0%} of the budget: {widths}: {found} ({len(judged)} judged)"


def _nothing_fits(board: Board, budget: Budget, shapes: Sequence[Accelerator]) -> str:
    if not shapes:
        return f"{board.name}: no accelerator has these parameters and mixtures; request fewer of them"

    def parts(shape: Accelerator) -> dict[str, float]:
        need = estimate(shape, board)
        return {n: getattr(need, n) / getattr(board.budget, n) for n in dataclasses.asdict(budget)}

    least = min(shapes, key=lambda shape: max(parts(shape).values()))
    over = {name: part for name, part in parts(least).items() if part > getattr(budget, name)}
    needs = ", ".join(
        f"{v:.0%} of its {n.upper()} ({getattr(budget, n):.0%} allowed)" for n, v in over.items()
    )
    return (
        f"{board.name} must hold the accelerator, but the smallest of these parameters and mixtures takes {needs}; the "
        f"nearest has lanes={least.lanes.total}, columns={least.columns}, depth={least.depth}, drain={least.drain}, "
        f"vector={least.vector}: raise the budget or request less"
    )


def _shapes(
    board: Board, mixtures: Sequence[Mixture], fixed: dict[str, int], dsp: float, depthwise: bool
) -> Iterator[tuple[Accelerator, Mixture]]:
    """Valid accelerators with the smallest memories, and their mixture; with more Fixed-8 lanes than `dsp` DSPs allow,
    the others are in LUTs. They have as many ports as fill no line beyond a row of the scratchpad, and for depthwise
    layers as many private chunks as lanes take and the drain keeps up with."""
    widths = {name: (fixed[name],) if name in fixed else values for name, values in WIDTHS.items()}
    base = board.default.to_dict() | {"instructions": INSTRUCTIONS} | fixed
    for mixture, *chosen in itertools.product(mixtures, *widths.values()):
        values = base | dict(zip(widths, chosen, strict=True))
        row = values["scratchpad_regions"] * values["columns"] * values["depth"]
        sizes = {"scratchpad_rows": SCRATCHPAD_BYTES[-1] // row, "weight_rows": WEIGHT_ROWS[-1]}
        most = values["columns"] * values["depth"] // values["bus_bytes"]
        sizes["ports"] = max(p for p in (1, 2, 4) if p == 1 or p <= min(most, board.interface.ports))
        for lanes in _lanes(mixture, values["drain"]):
            if depthwise and values["columns"].bit_count() == 1:
                most = min(2 * lanes.get("fixed8", 0), 8 * values["drain"], 16 * values["depth"])
                sizes["private"] = 1 << max(1, most // values["depth"]).bit_length() - 1
            with contextlib.suppress(AcceleratorError):
                shape = Accelerator.from_dict(values | sizes | fixed | {"lanes": lanes})
                yield with_luts(shape, board, dsp), mixture


def _sized(shape: Accelerator, board: Board, budget: Budget, fixed: set[str]) -> list[Accelerator]:
    """The shape with the largest memories that the budget holds: two sizes of scratchpad, weight rows with the rest."""
    row = shape.scratchpad_regions * shape.scratchpad_row_bytes
    scratchpads = [size // row for size in SCRATCHPAD_BYTES]
    if "scratchpad_rows" in fixed:
        scratchpads = [shape.scratchpad_rows]
    rows = [shape.weight_rows] if "weight_rows" in fixed else WEIGHT_ROWS
    found = []
    for scratchpad in scratchpads:
        for weights in rows:
            with contextlib.suppress(AcceleratorError):
                sized = dataclasses.replace(shape, scratchpad_rows=scratchpad, weight_rows=weights)
                if budget.holds(estimate(sized, board), board):
                    found.append(sized)
                    break
    return found[:2]


def _lanes(mixture: Mixture, drain: int) -> Iterator[dict[str, int]]:
    """Lane counts near the mixture's ratio, in multiples of `drain`."""
    whole = sum(mixture.values())
    seen = set()
    for total in range(drain, LANES + 1, drain):
        counts = {s.name.lower(): round(total * part / whole / drain) * drain for s, part in mixture.items()}
        key = tuple(counts.values())
        if sum(key) == total and all(key) and key not in seen:
            seen.add(key)
            yield counts


def _judge(graph: Graph, accelerator: Accelerator, mixture: Mixture, board: Board, bound: int) -> Design:
    """Raises CompileError."""
    roomy = dataclasses.replace(accelerator, instructions=1 << 16)
    program = compile(reassigned(graph, roomy), roomy)
    cycles = predict(program, board.interface.memory).cycles
    needed = -(-len(program.instructions) // INSTRUCTIONS) * INSTRUCTIONS
    accelerator = dataclasses.replace(accelerator, instructions=needed)
    return Design(
        accelerator=accelerator,
        mixture=mixture,
        need=estimate(accelerator, board),
        cycles=cycles,
        bound=bound,
        moved_bytes=sum(frame_bytes(program)[1].values()),
        macs=sum(graph.macs(operator) for operator in graph.operators),
    )


def reassigned(graph: Graph, accelerator: Accelerator) -> Graph:
    """The graph with rows in the accelerator's mixture, whole blocks of lanes dealt out by position.

    Codes are moved to the nearest of the new scheme: the shapes, instructions and cycles are those of a graph that is
    quantized for the accelerator, its answers are not. Grouped layers and incomplete blocks are Fixed-8.
    """
    lanes, drain = accelerator.lanes, accelerator.drain
    block = np.repeat(np.array(lanes.kinds[::drain], np.uint8), drain)
    books = {scheme: codebook(scheme) for scheme in Scheme}
    constants = dict(graph.constants)
    for operator in graph.operators:
        if not isinstance(operator, Linear | Conv):
            continue
        codes = graph.constant(operator, "weight")
        schemes = np.full(len(codes), Scheme.FIXED8, np.uint8)
        whole = 0 if isinstance(operator, Conv) and operator.groups > 1 else len(codes) // lanes.total
        schemes[: whole * lanes.total] = np.tile(block, whole)
        moved = codes.copy()
        for scheme in set(lanes.by_scheme) - {Scheme.FIXED8}:
            book, rows = books[scheme], schemes == scheme
            middle = (book[1:] + book[:-1]) / 2
            moved[rows] = book[np.searchsorted(middle, codes[rows])]
        constants |= {f"{operator.name}/weight": moved, f"{operator.name}/scheme": schemes}
    return dataclasses.replace(graph, constants=constants)


class _Work:
    """What a graph asks of any machine: the terms of a lower bound of a frame's cycles."""

    def __init__(self, graph: Graph):
        self.layers: list[tuple[int, int, int]] = []
        """Positions, outputs and products per output of layers with weights that are not grouped."""
        self.grouped = self.depthwise = 0
        """Products of the grouped ones, and of those of single channels."""
        self.attention: list[tuple[int, int, int, int]] = []
        """Positions, keys, channels of a head, and how many heads."""
        self.norms: list[tuple[int, int]] = []
        for operator in graph.operators:
            out = graph.tensor(operator.output)
            if isinstance(operator, Linear | Conv):
                weight = graph.constant(operator, "weight")
                positions = out.positions - (operator.prefix if isinstance(operator, Conv) else 0)
                if isinstance(operator, Conv) and operator.groups == len(weight) > 1 == weight.shape[-1]:
                    self.depthwise += graph.macs(operator)
                elif isinstance(operator, Conv) and operator.groups > 1:
                    self.grouped += graph.macs(operator)
                else:
                    self.layers.append((positions, len(weight), weight[0].size))
            elif isinstance(operator, Attention):
                keys = graph.tensor(operator.keys).positions // operator.windows
                self.attention.append((out.positions, keys, out.channels // operator.heads, operator.heads))
            elif isinstance(operator, LayerNorm):
                self.norms.append((out.positions, out.channels))

    def cycles(self, a: Accelerator) -> tuple[int, int]:
        """Cycles that the matrix engine and the vector engine are busy at the very least."""

        def products(positions: int, outputs: int, depth: int, lanes: int) -> int:
            tiles, chunks = -(-positions // a.columns), -(-depth // a.depth)
            return tiles * max(-(-outputs // lanes) * chunks, -(-outputs // a.drain))

        matrix = sum(products(*layer, a.lanes.total) for layer in self.layers)
        matrix += self.grouped // a.multipliers + self.depthwise // (a.private * a.depth * a.columns)
        vector = 0
        for positions, keys, width, heads in self.attention:
            matrix += heads * products(positions, keys, width, a.lanes.dynamic)
            matrix += heads * products(positions, width, keys, a.lanes.dynamic)
            vector += heads * 2 * -(-positions // a.columns) * -(-keys // a.vector)
        for positions, channels in self.norms:
            vector += 2 * -(-positions // a.columns) * -(-channels // a.vector)
        return matrix, vector
