"""Which activations stay on chip, which pass through DRAM, and which operators run in bands: least off-chip traffic first,
then least computing, or the least of both in cycles where the first would add much computing.

An integer program over the operators in order, after COSMA (Zhang et al., 2023): residency of each tensor at each
operator, a capacity at each, and besides the ways to cut the operators into groups of bands. Solved by CP-SAT with one
worker and a limit in deterministic time, so that compiling stays reproducible; what is not proven optimal has a bound.
"""

from __future__ import annotations

import dataclasses
import itertools

from ..arch import graph as g
from . import estimate
from .allocate import lifetimes, peak
from .cuts import Band, Cutter, Group, Schedule, Shape
from .ir import Memory, capacity, row_bytes
from .tensors import Tensors

__all__ = ["least", "schedule"]

_BANDS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
_ENOUGH = 8
"""Part of the scratchpad below which smaller bands are no use."""
_LENGTH = 6
"""Operators of a group at most, those that make no tensor not counted."""
_OVERHEAD = 40
"""Cycles that an instruction costs besides its work."""
_MUCH = 0.2
"""Part of a frame's computing that bands may add for the sake of the least traffic; where they add more, the least of both in
cycles is taken."""
_LATENCY = 1000
"""Cycles that a band waits for its transfers, about, where these count."""
_SECONDS = 3.0
"""Deterministic time for each objective."""


@dataclasses.dataclass
class _Life:
    """A tensor's rows and the operators first..last between which it exists."""

    rows: int
    first: int
    last: int
    users: set[int]
    data: bool


@dataclasses.dataclass(frozen=True)
class _Way:
    """A group and what it needs."""

    group: Group
    inside: frozenset[str] = frozenset()
    """Tensors that exist only in bands."""
    needed: int = 0
    """Rows of bands that exist at once, without those from and to DRAM."""
    passing: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows that each other tensor of the group takes where it passes from or to DRAM."""
    moved: dict[str, int] = dataclasses.field(default_factory=dict)
    """Rows that are loaded of each input that does."""
    away: frozenset[str] = frozenset()
    """Tensors that must pass, because a gather cannot read them where they are on chip."""
    cycles: int = 0
    """More than without bands."""


def schedule(tensors: Tensors, rows: int) -> Schedule | None:
    """The best schedule found for the lowered graph in so many rows of scratchpad; None where there is none."""
    return _Problem(tensors, rows).solve()


def least(tensors: Tensors, rows: int) -> tuple[int, int]:
    """The operator that needs the most rows of scratchpad of those that need more than `rows`, by itself or in bands,
    and how many that are; (0, rows + 1) where each would fit."""
    problem = _Problem(tensors, rows)
    needs = [
        extra + sum(life.rows for life in problem.lives.values() if index in life.users)
        for index, extra in enumerate(problem.extra)
    ]
    found = dict.fromkeys(range(problem.count), 1 << 40)
    for way in problem.ways(limit=1 << 40):
        for index in range(way.group.first, way.group.last + 1):
            need = way.needed + sum(way.passing.values()) if way.group.bands > 1 else needs[index]
            found[index] = min(found[index], need)
    worst = max(found, key=lambda index: found[index])
    return (worst, found[worst]) if found[worst] > rows else (0, rows + 1)


class _Problem:
    """A lowered graph as seen by the solver."""

    def __init__(self, tensors: Tensors, rows: int):
        self.tensors, self.graph, self.rows = tensors, tensors.graph, rows
        self.count = len(self.graph.operators)
        self.cutter = Cutter(self.graph, tensors.places, tensors.accelerator.columns)
        self.lives: dict[str, _Life] = {}
        self.extra, self.cycles = [0] * self.count, [0] * self.count
        """Rows of an operator's own buffers, and its cycles."""
        self.weights = [0] * self.count
        """Rows of its weights."""
        names, places = {tensor.name for tensor in self.graph.tensors}, tensors.places
        for index, (first, end) in enumerate(tensors.ranges):
            items = tensors.items[first:end]
            self.cycles[index] = sum(estimate.cycles(tensors.accelerator, item) for item in items)
            read = {span.buffer for item in items for span in item.reads}
            self.weights[index] = sum(
                b.rows for b in read if b.memory == Memory.WEIGHT and b.data is not None
            )
            found = lifetimes(items, Memory.SCRATCHPAD)
            self.extra[index] = peak({b: life for b, life in found.items() if b.name not in names})
            operator = self.graph.operators[index]
            read = () if self.cutter.virtual(operator) else g.reads(operator)
            read = [places[n].buffer for n in read if n in places]
            for buffer in (*found, *read):
                if buffer.name in names:
                    new = _Life(buffer.rows, index, index, set(), buffer.data is not None)
                    life = self.lives.setdefault(buffer.name, new)
                    life.last = index
                    life.users.add(index)
        self.input = self.graph.input
        root = tensors.places[self.graph.output].buffer.name
        self.output = root if root in self.lives else self.graph.output
        self.lives[self.output].last = self.count - 1
        self.reads_output = root != self.graph.output or self.output in {
            name for operator in self.graph.operators for name in g.reads(operator)
        }

    def ways(self, limit: int | None = None) -> list[_Way]:
        """Every operator alone, and groups of bands around those that do not fit, in at most `limit` rows."""
        limit = self.rows if limit is None else limit
        full = [
            self.extra[k] + sum(life.rows for life in self.living(k, k).values()) for k in range(self.count)
        ]
        torn = self.tensors.torn
        tight = {k for k in range(self.count) if full[k] > self.rows or k in torn}
        found = [_Way(Group(k, k, 1)) for k in range(self.count) if k not in torn]
        for first, last in self.spans(tight):
            seen: set[int] = set()
            for bands in _BANDS:
                way = self.way(Group(first, last, bands), seen)
                if way is not None and way.needed <= limit:
                    found.append(way)
                    if way.needed + sum(way.passing.values()) <= self.rows // _ENOUGH:
                        break
        return found

    def spans(self, tight: set[int]) -> list[tuple[int, int]]:
        """First and last operator of groups with an operator of `tight` that can be computed in bands."""
        able = [self.cutter.bandable(op) for op in self.graph.operators]
        counted = [not self.cutter.virtual(op) for op in self.graph.operators]
        found = []
        for first in range(self.count):
            for last in range(first, self.count):
                if not able[last] or sum(counted[first : last + 1]) > _LENGTH:
                    break
                inside = any(first <= k <= last for k in tight)
                if inside and self.cutter.sensible(Group(first, last, 2)):
                    found.append((first, last))
        return found

    def way(self, group: Group, seen: set[int]) -> _Way | None:
        """A group in bands; None where another way has as many."""
        operators, cutter = self.graph.operators, self.cutter
        real = [k for k in range(group.first, group.last + 1) if not cutter.virtual(operators[k])]
        made = {n for k in real for n in g.writes(operators[k])}
        if not made <= self.lives.keys():
            return None
        outlive = {n for n in made if self.lives[n].last > group.last}
        shapes = cutter.shapes(group)
        bands = cutter.bands(group, shapes, outlive)
        if len(bands) in seen or len(bands) < 2:
            return None
        seen.add(len(bands))
        inside, sizes = made - outlive, [self.sizes(band, shapes) for band in bands]
        work = sum(
            self.cycles[k]
            * sum(b.outputs[k][1] - b.outputs[k][0] for b in bands)
            / shapes[operators[k].output].rows
            for k in real
        )
        region = self.tensors.accelerator.scratchpad_rows
        if any(found[name] > region for found in sizes for name in cutter.gathered(group)):
            return None
        away = {n for n in cutter.gathered(group) if self.lives[n].rows > region}
        plain = sum(self.cycles[group.first : group.last + 1])
        outside = shapes.keys() - inside
        return _Way(
            group,
            frozenset(inside),
            max(self.needed(real, inside, found) for found in sizes),
            {name: 2 * max(found[name] for found in sizes) for name in outside},
            {name: sum(found[name] for found in sizes) for name in outside - made},
            frozenset(away),
            round(work - plain) + _OVERHEAD * len(bands) * len(real) + (len(bands) - 1) * self.loads(real),
        )

    def loads(self, real: list[int]) -> int:
        """Cycles to load the weights of operators, for each band but one, unless they stay."""
        a, rows = self.tensors.accelerator, sum(self.weights[k] for k in real)
        return 0 if rows <= capacity(a, Memory.WEIGHT) else rows * a.beats(row_bytes(a, Memory.WEIGHT))

    def sizes(self, band: Band, shapes: dict[str, Shape]) -> dict[str, int]:
        """Rows of the scratchpad for what a band has of each tensor."""
        spans: dict[str, tuple[int, int]] = {}
        for k, rows in band.outputs.items():
            spans |= dict.fromkeys(g.writes(self.graph.operators[k]), rows)
        for (_, name), rows in band.inputs.items():
            first, end = spans.get(name, rows)
            spans[name] = min(first, rows[0]), max(end, rows[1])
        counts = {name: end - first for name, (first, end) in spans.items()}
        counts |= {name: sum(end - first for first, end in pieces) for name, pieces in band.pieces.items()}
        a, places = self.tensors.accelerator, self.tensors.places
        return {
            name: places[name].resized(count * shapes[name].width).rows(a) for name, count in counts.items()
        }

    def needed(self, real: list[int], inside: set[str], sizes: dict[str, int]) -> int:
        """Rows that the tensors inside a group of operators, and their own buffers, take at once in a band."""
        most = level = 0
        for k in real:
            level += sum(sizes[name] for name in g.writes(self.graph.operators[k]) if name in inside)
            most = max(most, level + self.extra[k])
            level -= sum(sizes[name] for name in inside if self.lives[name].last == k)
        return most

    def living(self, first: int, last: int) -> dict[str, _Life]:
        """Tensors that exist during operators first..last; content of the program always does."""
        return {
            n: life
            for n, life in self.lives.items()
            if life.data or (life.first <= last and first <= life.last)
        }

    def solve(self) -> Schedule | None:
        """The objectives, one after the other."""
        from ortools.sat.python import cp_model  # takes a second to import, and few graphs need it

        model, ways = cp_model.CpModel(), self.ways()
        chosen = [model.new_bool_var(f"way{i}") for i in range(len(ways))]
        chip = {(n, k): model.new_bool_var("") for n, life in self.lives.items() for k in self.span(life)}
        for k in range(self.count):
            model.add_exactly_one(
                c for c, w in zip(chosen, ways, strict=True) if w.group.first <= k <= w.group.last
            )
        traffic = [self.lives[self.output].rows]
        for way, taken in zip(ways, chosen, strict=True):
            first, last = way.group.first, way.group.last
            used = [] if way.group.bands > 1 else [self.extra[first]]
            for name, life in self.living(first, last).items():
                if name in way.inside:
                    continue
                states = [
                    chip[name, k]
                    for k in range(max(first, self.span(life)[0]), min(last, self.span(life)[-1]) + 1)
                ]
                for a, b in itertools.pairwise(states):
                    model.add(a == b).only_enforce_if(taken)
                used.append(life.rows * states[0])
                if way.group.bands == 1 and first in life.users:
                    model.add_implication(taken, states[0])
                elif name in way.passing:
                    if name in way.away:
                        model.add_implication(taken, states[0].negated())
                    used.append(way.passing[name] * (1 - states[0]))
                    if name in way.moved:
                        passes = model.new_bool_var("")
                        model.add_bool_or(passes, states[0], taken.negated())
                        traffic.append(way.moved[name] * passes)
            model.add(sum(used) + way.needed <= self.rows).only_enforce_if(taken)
        for name, life in self.lives.items():
            span = self.span(life)
            comes = name == self.input or life.data
            for a, b in itertools.pairwise(span):
                loaded = model.new_bool_var("")
                model.add_bool_or(loaded, chip[name, b].negated(), chip[name, a])
                traffic.append(life.rows * loaded)
            if life.data:  # loaded unless it stays for ever
                stays = model.new_bool_var("")
                for k in span:
                    model.add_implication(stays, chip[name, k])
                loaded = model.new_bool_var("")
                model.add_bool_or(loaded, chip[name, span[0]].negated(), stays)
                traffic.append(life.rows * loaded)
            elif comes:
                traffic.append(life.rows * chip[name, span[0]])
            elif name == self.output:
                for k in span if self.reads_output else ():
                    model.add(chip[name, k] == 1)
            else:
                stored = model.new_bool_var("")
                for k in span:
                    model.add_bool_or(stored, chip[name, k])
                traffic.append(life.rows * stored)
        return self.read(*self.search(cp_model, model, traffic, ways, chosen), ways, chosen, chip)

    def span(self, life: _Life) -> range:
        """Operators at which a tensor may be on chip."""
        return range(self.count) if life.data else range(life.first, life.last + 1)

    def search(self, cp_model, model, traffic: list, ways: list[_Way], chosen: list) -> tuple:
        """A solver with the best solution found (None where there is none), and the least traffic that is possible."""
        least = sum(traffic)
        model.minimize(least)
        first = _solver(cp_model)
        if first.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None, 0
        bound = round(first.best_objective_bound)
        model.clear_hints()
        for index in range(len(model.proto.variables)):
            variable = model.get_bool_var_from_proto_index(index)
            model.add_hint(variable, first.boolean_value(variable))
        more = sum(way.cycles * taken for way, taken in zip(ways, chosen, strict=True))
        tight = model.clone()
        tight.add(least <= round(first.objective_value))
        tight.minimize(more)
        second = _solver(cp_model)
        if second.solve(tight) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return first, bound
        if second.objective_value <= _MUCH * sum(self.cycles):
            return second, bound
        a = self.tensors.accelerator
        waits = sum(
            _LATENCY * w.group.bands * c for c, w in zip(chosen, ways, strict=True) if w.group.bands > 1
        )
        model.minimize(more + waits + a.beats(row_bytes(a, Memory.SCRATCHPAD)) * least)
        third = _solver(cp_model)
        found = third.solve(model) in (cp_model.OPTIMAL, cp_model.FEASIBLE)
        return third if found else second, bound

    def read(self, solver, bound: int, ways: list[_Way], chosen: list, chip: dict) -> Schedule | None:
        """The schedule in a solution."""
        if solver is None:
            return None
        taken = [way for way, variable in zip(ways, chosen, strict=True) if solver.boolean_value(variable)]
        taken.sort(key=lambda way: way.group.first)
        at = {
            k: number for number, way in enumerate(taken) for k in range(way.group.first, way.group.last + 1)
        }
        inside = {name for way in taken for name in way.inside}
        there = {
            key: solver.boolean_value(variable) for key, variable in chip.items() if key[0] not in inside
        }
        ends = {self.input, self.output} | {name for name, life in self.lives.items() if life.data}
        a = self.tensors.accelerator
        pitch = a.pitch(row_bytes(a, Memory.SCRATCHPAD))
        return Schedule(
            groups=tuple(way.group for way in taken),
            chip=frozenset((name, at[k]) for (name, k), value in there.items() if value),
            stored=frozenset(name for (name, _), value in there.items() if not value and name not in ends),
            bound=bound * pitch,
            places=self.tensors.places,
        )


def _solver(cp_model):
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = _SECONDS
    return solver
