"""Parameters that fit a board: those that are requested, and the rest as far as there is room."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

from ..arch.accelerator import Accelerator, AcceleratorError
from .board import Board, BoardError
from .fitting import estimate

__all__ = ["apart", "fit", "require_interface"]


def fit(board: Board, request: Mapping) -> Accelerator:
    """The board's default with the parameters in `request` (names of `Accelerator`, `lanes` a mapping of its own).

    Parameters that are not requested shrink where that is needed. Raises BoardError, which says what is missing or which
    relation is broken, and which values of the requested parameters would fit, and AcceleratorError for unknown names.
    """
    values = board.default.to_dict()
    lanes = {**values["lanes"], **request.get("lanes", {})}
    wanted = {**values, **request, "lanes": lanes}
    fixed = {*(set(request) - {"lanes"}), *(f"lanes.{kind}" for kind in request.get("lanes", {}))}
    try:
        start = _adapted(wanted, fixed)
    except AcceleratorError as error:
        raise _with_nearest(error, board, wanted, fixed) from None
    fitted, accelerator = _shrunk(board, start, fixed)
    if not fitted:
        possible, nearest = _shrunk(board, accelerator, frozenset())
        missing = "; ".join(
            f"needs {need}, {board.name} has {has}" for need, has in _missing(board, accelerator)
        )
        hint = ", ".join(f"{name}={_value(nearest, name)}" for name in sorted(fixed))
        remedy = f"The nearest that fits: {hint}." if possible else "Nothing near it fits."
        raise BoardError(f"{board.name} must hold the accelerator: {missing}. {remedy}")
    return accelerator


def _adapted(values: dict, fixed: set[str]) -> Accelerator:
    """An accelerator of `values`, where free parameters give way to the relations between parameters."""
    error = None
    for drain in (values["drain"], 8, 4, 2, 1):
        adapted = dict(values)
        limits = {"columns": values["depth"], "vector": values["depth"] // 2, "drain": values["depth"] // 2}
        for name, limit in limits.items():
            if name not in fixed:
                adapted[name] = min(drain if name == "drain" else adapted[name], limit)
        if "burst_beats" not in fixed:
            adapted["burst_beats"] = min(adapted["burst_beats"], 4096 // max(1, adapted["bus_bytes"]))
        try:
            return Accelerator.from_dict(adapted)
        except AcceleratorError as problem:
            error = error or problem
    raise error


def _with_nearest(
    error: AcceleratorError, board: Board, wanted: dict, fixed: set[str]
) -> AcceleratorError | BoardError:
    """What is wrong with requested parameters, in a line with the nearest values of them that are valid and fit."""
    _, *problems = map(str.strip, str(error).splitlines())
    if not problems:
        return error
    names = sorted(fixed)
    owners = {name: (wanted["lanes"], name[6:]) if "." in name else (wanted, name) for name in names}
    asked = {name: owner[inner] for name, (owner, inner) in owners.items()}
    options = {
        name: sorted(_near(value), key=functools.partial(apart, value)) for name, value in asked.items()
    }
    named = [name for name in names if any(re.search(rf"\b{re.escape(name)}\b", text) for text in problems)]
    tries = itertools.product(*(options[name] if name in named else options[name][:1] for name in names))

    def distance(values: tuple[int, ...]) -> float:
        return sum(apart(one, other) for one, other in zip(asked.values(), values, strict=True))

    for values in sorted(itertools.islice(tries, 20_000), key=distance):
        changed = {**wanted, "lanes": dict(wanted["lanes"])}
        for name, value in zip(names, values, strict=True):
            (changed["lanes"] if "." in name else changed)[name.removeprefix("lanes.")] = value
        with contextlib.suppress(AcceleratorError):
            fitted, nearest = _shrunk(board, _adapted(changed, fixed), fixed)
            if fitted:
                hint = ", ".join(f"{name}={_value(nearest, name)}" for name in names)
                return BoardError(f"{board.name}: {'; '.join(problems)}. The nearest that fits: {hint}.")
    return BoardError(f"{board.name}: {'; '.join(problems)}. Nothing near it fits.")


def _near(value: int) -> set[int]:
    """The value, powers of two about it, and multiples of these about it."""
    powers = {1 << shift for shift in range(max(1, value).bit_length() + 2)}
    multiples = {(value // power + up) * power for power in powers for up in (0, 1)}
    return {value} | {
        near for near in powers | multiples if near > 0 and 4 * near >= value and near <= 4 * max(1, value)
    }


def apart(one: int, other: int) -> float:
    """How far values of a parameter are from each other, in powers of two; 0 is as far from 1 as 1 from 2."""
    return abs(math.log2(max(one, 0.5) / max(other, 0.5)))


def _value(accelerator: Accelerator, name: str) -> int:
    owner, _, inner = name.rpartition(".")
    return getattr(accelerator.lanes if owner else accelerator, inner)


MEMORY_FLOORS = {
    "weight_rows": 512,
    "scratchpad_rows": 256,
    "param_rows": 128,
    "norm_rows": 64,
    "operand_chunks": 64,
    "instructions": 128,
    "table_pages": 1,
}
"""Parameters that shrink only where block RAM is short, and how far."""

FLOORS = {
    "lanes.fixed8": 2,
    "lanes.fixed4": 0,
    "lanes.pot4": 0,
    "lanes.sp2_4": 0,
    "lanes.ternary": 0,
    "lanes.binary": 0,
    "vector": 2,
    "drain": 2,
    "columns": 2,
    "depth": 4,
    "bus_bytes": 4,
    "ports": 1,
}
"""Parameters that shrink for any shortage, and how far."""


def _halved(
    accelerator: Accelerator, fixed: frozenset[str] | set[str], floors: Mapping[str, int]
) -> Iterator[Accelerator]:
    """Valid accelerators with one free parameter of `floors` halved."""
    for name, floor in floors.items():
        half = _value(accelerator, name) // 2
        if name in fixed or half < floor or half == _value(accelerator, name):
            continue
        owner, _, inner = name.rpartition(".")
        try:
            if owner:
                yield dataclasses.replace(
                    accelerator, lanes=dataclasses.replace(accelerator.lanes, **{inner: half})
                )
            else:
                yield dataclasses.replace(accelerator, **{inner: half})
        except AcceleratorError:
            continue


def _shrunk(board: Board, accelerator: Accelerator, fixed) -> tuple[bool, Accelerator]:
    """Halve free parameters, each time that which helps most, until the board holds it or nothing helps."""
    while excess := _excess(board, accelerator):
        need = estimate(accelerator, board)
        for floors in (MEMORY_FLOORS, FLOORS) if need.bram > board.budget.bram else (FLOORS,):
            options = _halved(accelerator, fixed, floors)
            best = min(options, key=lambda other: _excess(board, other), default=None)
            if best is not None and _excess(board, best) < excess:
                accelerator = best
                break
        else:
            return False, accelerator
    return True, accelerator


def _needs(board: Board, accelerator: Accelerator) -> list[tuple[str, float, float]]:
    """(what, needed, available), LUTs with a tenth left for placement."""
    need, has = estimate(accelerator, board), board.budget
    return [
        ("LUT (with a tenth left for placement)", round(need.lut / 0.9), has.lut),
        ("FF", need.ff, has.ff),
        ("DSP", need.dsp, has.dsp),
        ("block RAM", need.bram, has.bram),
        *_interface_needs(board, accelerator),
    ]


def _interface_needs(board: Board, accelerator: Accelerator) -> list[tuple[str, float, float]]:
    """(what, needed, available) at the way to DRAM."""
    interface, rate = board.interface, accelerator.line_bytes * board.clock_mhz
    return [
        ("AXI ports", accelerator.ports, interface.ports),
        ("bus bytes", accelerator.bus_bytes, interface.bus_bytes),
        ("MB/s of DRAM at full rate", rate, round(interface.bandwidth_bytes_per_second / 1e6)),
    ]


def require_interface(accelerator: Accelerator, board: Board) -> None:
    """Raises BoardError, with the nearest that works, for AXI ports that are more, wider or faster than the board's."""
    missing = [need for need in _interface_needs(board, accelerator) if need[1] > need[2]]
    if not missing:
        return
    a, interface = accelerator, board.interface
    nearest = min(
        (
            (ports, size)
            for ports in (1, 2, 4)
            for size in (4, 8, 16, 32, 64, 128)
            if ports <= interface.ports
            and size <= interface.bus_bytes
            and ports * size * board.clock_mhz * 1e6 <= interface.bandwidth_bytes_per_second
        ),
        key=lambda pair: (abs(pair[0] * pair[1] - a.line_bytes), abs(pair[1] - a.bus_bytes)),
    )
    text = "; ".join(f"needs {need:,.0f} {what}, {board.name} has {has:,.0f}" for what, need, has in missing)
    raise BoardError(
        f"{board.name} must have the accelerator's way to DRAM ({interface.description}): {text}. "
        f"The nearest that works: ports={nearest[0]}, bus_bytes={nearest[1]}."
    )


def _missing(board: Board, accelerator: Accelerator) -> list[tuple[str, str]]:
    """What the board lacks: (needed, available) as text."""
    return [
        (f"{math.ceil(need):,} {what}", f"{has:,}")
        for what, need, has in _needs(board, accelerator)
        if need > has
    ]


def _excess(board: Board, accelerator: Accelerator) -> float:
    """How far the needs exceed the board, summed over resources; 0 if they fit."""
    return sum(max(0.0, need / has - 1) for _, need, has in _needs(board, accelerator))
