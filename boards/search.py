"""The fastest accelerator for a model within a budget: candidates in the order of a guess of their cycles, the cycle
model as judge, lower bounds to leave out the rest."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..arch.accelerator import Accelerator
from ..arch.graph import Graph
from ..compiler import CompileError, compile
from ..sim.cycle import predict
from .bandwidth import frame_bytes
from .board import Board, BoardError, Resources
from .fitting import estimate
from .mixtures import Mixture, RowBlock, reassigned, row_block
from .requests import apart, require_interface
from .shapes import INSTRUCTIONS, grown, is_roomy, shapes, sized, with_moments
from .work import Work

__all__ = ["PARTS", "Budget", "Design", "Search", "Version", "search"]

THOROUGH = 3
"""Designs, the fastest ones, whose programs are chosen among many orders."""
MOST_INSTRUCTIONS = 1 << 14
SPARE_INSTRUCTIONS = 32
"""What the compiler leaves free of a machine's instructions when it chooses among ways to cut layers."""
PARTS = (1.0, 0.75, 0.5, 0.25)
"""Parts of the budget that have a search of their own, for designs of every size; the first has half of the evaluations."""


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
class Version:
    """A way to quantize a model."""

    name: str
    graph: Graph
    """Its shapes and bits; rows are dealt out anew for each accelerator."""
    mixture: Mixture
    """Of rows, with the fewest Fixed-8 ones."""
    accuracy: float | None = None
    """Top-1 in per cent that was measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Design:
    """An accelerator that a model was compiled for."""

    accelerator: Accelerator
    version: Version
    rows: RowBlock
    """How rows are to be quantized."""
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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """A shape for a version."""

    shape: Accelerator
    version: Version
    need: Resources
    bound: int
    guess: float
    work: Work


def search(
    versions: Sequence[Version],
    board: Board,
    *,
    budget: Budget | None = None,
    fixed: Mapping[str, int] | None = None,
    evaluations: int = 48,
    thorough: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Search:
    """The fastest accelerators for a model on `board`, and smaller ones.

    `fixed` holds parameters of `Accelerator` that are not searched. Each part of the budget in PARTS takes its share of
    the `evaluations`, those first that are guessed fastest, and leaves out what is slower than its best by its bound.
    Its best is tried with other shares of scratchpad and weights, and with row moments where there are LayerNorms.
    With `thorough` the THOROUGH fastest are compiled again, with the cycle model as judge of the order of instructions.
    Raises BoardError where no candidate fits or none compiles.
    """
    budget, fixed = budget or Budget(), dict(fixed or {})
    found = _candidates(versions, board, budget, fixed)
    judge = _Judge(board, budget, fixed, progress)
    open_bounds: list[int] = []
    for part in PARTS:
        left, best = -(-evaluations // (2 if part == PARTS[0] else 2 * len(PARTS[1:]))), None
        holds = functools.partial((budget * part).holds, board=board)
        unjudged = [one for one in found if holds(one.need)]
        # First those whose memories are large enough; whether less will do, only the compiler knows.
        for roomy, one in itertools.product((True, False), tuple(unjudged)):
            if left <= 0:
                break
            if best and one.bound >= best.cycles:
                continue
            tried = sized(one.shape, board, holds, fixed, one.work)
            if not tried or roomy != is_roomy(tried[0], one.work):
                continue
            unjudged.remove(one)
            for number, accelerator in enumerate(tried):
                left -= not judge.knows(one, accelerator)
                design = judge(part, one, accelerator)
                if design and (best is None or design.cycles < best.cycles):
                    best, of_best, others = design, one, tried[number + 1 :]
                if design:
                    break
        if best:
            for accelerator in others:  # the best shape with another share of scratchpad and weights
                judge(part, of_best, accelerator)
            if moments := with_moments(best.accelerator, board, holds, fixed, of_best.work):
                judge(part, of_best, moments)
        if part == PARTS[0]:
            open_bounds = [one.bound for one in unjudged]
    designs = _sorted(d for d in judge.designs.values() if d)
    if thorough:
        designs = _sorted([*map(judge.thorough, designs[:THOROUGH]), *designs[THOROUGH:]])
    if not designs:
        raise BoardError(_nothing_runs(found[0], board, budget, len(judge.designs), judge.reasons))
    least = [bound for bound in open_bounds if bound < designs[0].cycles]
    return Search(designs=tuple(designs), open_bound=min(least, default=None))


def _sorted(designs: Iterable[Design]) -> list[Design]:
    """The fastest first, of equally fast ones the smallest: no other dominates the first."""
    return sorted(designs, key=lambda d: (d.cycles, *dataclasses.astuple(d.need)))


class _Judge:
    """Compiles and predicts, each accelerator once for a version."""

    def __init__(
        self, board: Board, budget: Budget, fixed: Mapping[str, int], progress: Callable[[str], None]
    ):
        self.board, self.budget, self.fixed, self.progress = board, budget, fixed, progress
        self.designs: dict[tuple[Accelerator, str], Design | None] = {}
        self.reasons: collections.Counter[str] = collections.Counter()
        """Why there is none, and how often."""

    def knows(self, one: _Candidate, accelerator: Accelerator) -> bool:
        """Whether it has been judged."""
        return (accelerator, one.version.name) in self.designs

    def __call__(self, part: float, one: _Candidate, accelerator: Accelerator) -> Design | None:
        """None where it does not compile, or its instructions take more than the budget."""
        key = accelerator, one.version.name
        if key not in self.designs:
            try:
                design, reason = self._made(one.version, accelerator, one.bound), ""
            except CompileError as error:
                design, reason = None, str(error).splitlines()[-1].strip()
                self.reasons[reason] += 1
            self.designs[key] = design
            self.progress(_told(part, len(self.designs), accelerator, design, reason))
        return self.designs[key]

    def thorough(self, design: Design) -> Design:
        """The same machine, perhaps with more instructions, and the best of many programs."""
        self.progress(f"{_words(design.accelerator)}: many orders of its instructions")
        return self._made(design.version, design.accelerator, design.bound, thorough=True)

    def _made(self, version: Version, a: Accelerator, bound: int, thorough: bool = False) -> Design:
        """A design of as many instructions as its program needs, at most those that the budget allows, or of those that are
        fixed. Raises CompileError."""
        if "instructions" in self.fixed:
            return _judge(version, a, self.board, bound, thorough, least=a.instructions)
        most = a.instructions
        while most < MOST_INSTRUCTIONS:
            larger = dataclasses.replace(a, instructions=most + INSTRUCTIONS)
            if not self.budget.holds(estimate(larger, self.board), self.board):
                break
            most = larger.instructions
        return _judge(version, dataclasses.replace(a, instructions=most), self.board, bound, thorough)


def _candidates(
    versions: Sequence[Version], board: Board, budget: Budget, fixed: Mapping[str, int]
) -> list[_Candidate]:
    """What fits with the smallest memories, the fastest by guess first. Raises BoardError where nothing does."""
    found, all_shapes = [], []
    for version in versions:
        work = Work(version.graph)
        for shape in shapes(board, work, version.mixture, fixed, budget.dsp * board.budget.dsp):
            if not all_shapes:
                require_interface(shape, board)
            all_shapes.append(shape)
            need = estimate(shape, board)
            if budget.holds(need, board):
                matrix, vector = work.cycles(shape)
                guess = work.guess(shape, (matrix, vector))
                # Of the shape with row moments, too.
                bound = max(matrix, vector - work.normed(shape) * ("row_moments" not in fixed))
                found.append(
                    _Candidate(shape=shape, version=version, need=need, bound=bound, guess=guess, work=work)
                )
    if not found:
        raise BoardError(_nothing_fits(versions, board, budget, fixed, all_shapes))
    kept: dict[tuple, _Candidate] = {}
    for one in sorted(found, key=lambda one: (one.guess, one.need.lut)):
        a, lanes = one.shape, tuple(one.shape.lanes.by_scheme.items())
        # Of those that differ in their kinds of lanes alone, and take as long by guess, the smallest.
        same = one.version.name, lanes, a.columns, a.depth, a.drain, a.vector, one.guess
        kept.setdefault(same, one)
    return list(kept.values())


def _told(part: float, judged: int, a: Accelerator, design: Design | None, reason: str) -> str:
    found = f"{design.cycles:,} cycles" if design else reason
    return f"{part:.0%} of the budget: {_words(a)}: {found} ({judged} judged)"


def _nothing_fits(
    versions: Sequence[Version],
    board: Board,
    budget: Budget,
    fixed: Mapping[str, int],
    tried: Sequence[Accelerator],
) -> str:
    """What is asked for, and the nearest that works."""
    asked = ", ".join(f"{name}={value}" for name, value in fixed.items())
    asked = f"{board.name} must hold an accelerator" + (f" with {asked}" if asked else "")
    if tried:
        least = min(tried, key=lambda shape: max(_over(shape, board, budget).values()))
        over = {name: part for name, part in _over(least, board, budget).items() if part > 1}
        needs = ", ".join(
            f"{part * getattr(budget, name):.1%} of its {name.upper()} ({getattr(budget, name):.0%} allowed)"
            for name, part in over.items()
        )
        problem = f"{asked}, but the smallest takes {needs}"
    else:
        least, over, problem = None, {}, f"{asked}, but no accelerator has these parameters"
    if fixed:
        free = (
            shape
            for version in versions
            for shape in shapes(
                board, Work(version.graph), version.mixture, {}, budget.dsp * board.budget.dsp
            )
            if budget.holds(estimate(shape, board), board)
        )

        def distance(shape: Accelerator) -> float:
            return sum(apart(getattr(shape, name), value) for name, value in fixed.items())

        nearest = min(free, key=distance, default=None)
        if nearest is not None:
            values = ", ".join(f"{name}={getattr(nearest, name)}" for name in fixed)
            return f"{problem}; the nearest that fits has {values}"
    parts = " ".join(
        f"--{name} {math.ceil(100 * part * getattr(budget, name))}" for name, part in over.items()
    )
    return f"{problem}; one of {_words(least)} fits with {parts}" if least else problem


def _over(shape: Accelerator, board: Board, budget: Budget) -> dict[str, float]:
    """What a shape needs of each resource, in parts of what the budget allows."""
    need = estimate(shape, board)
    return {
        name: getattr(need, name) / (part * getattr(board.budget, name))
        for name, part in dataclasses.asdict(budget).items()
    }


def _words(a: Accelerator) -> str:
    return (
        f"{a.lanes.total} lanes x {a.columns} columns x depth {a.depth}, drain={a.drain}, vector={a.vector}"
    )


def _nothing_runs(
    one: _Candidate, board: Board, budget: Budget, tried: int, reasons: collections.Counter[str]
) -> str:
    """Why nothing that fits runs the model, and the smallest memories with which the fastest shape does."""
    graph = one.version.graph
    problem = (
        f"{board.name}: none of {tried} accelerators that fit can run {graph.name}; most often: "
        f"{reasons.most_common(1)[0][0]}"
    )
    for larger in grown(one.shape):
        larger = dataclasses.replace(larger, instructions=MOST_INSTRUCTIONS)
        try:
            design = _judge(one.version, larger, board, one.bound)
        except CompileError:
            continue
        a, over = design.accelerator, _over(design.accelerator, board, budget)
        needs = ", ".join(
            f"{part * getattr(budget, name):.0%} of {name.upper()}" for name, part in over.items() if part > 1
        )
        return (
            f"{problem} The nearest that runs it has scratchpad_rows={a.scratchpad_rows}, weight_rows={a.weight_rows}, "
            f"instructions={a.instructions}" + (f" and takes {needs}" if needs else "")
        )
    return problem


def _judge(
    version: Version,
    accelerator: Accelerator,
    board: Board,
    bound: int,
    thorough: bool = False,
    least: int = 0,
) -> Design:
    """A design of as few of the accelerator's instructions as its program needs, but `least`. Raises CompileError."""
    graph, memory = version.graph, board.interface.memory
    rows = row_block(graph, version.mixture, accelerator)
    judge = (lambda program: predict(program, memory).cycles) if thorough else None
    program = compile(reassigned(graph, rows), accelerator, judge=judge)
    cycles = predict(program, memory).cycles
    needed = -(-(len(program.instructions) + SPARE_INSTRUCTIONS) // INSTRUCTIONS) * INSTRUCTIONS
    needed = max(least, min(needed, accelerator.instructions))
    accelerator = dataclasses.replace(accelerator, instructions=needed)
    return Design(
        accelerator=accelerator,
        version=version,
        rows=rows,
        need=estimate(accelerator, board),
        cycles=cycles,
        bound=bound,
        moved_bytes=sum(frame_bytes(program)[1].values()),
        macs=sum(layer.macs for layer in program.layers),
    )
