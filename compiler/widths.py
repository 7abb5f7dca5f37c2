"""How large codes can be, and which lanes take them as operands, keys or values."""

from __future__ import annotations

import numpy as np

from ..arch.accelerator import Accelerator, Lanes
from ..arch.graph import Graph, reads
from ..arch.schemes import Scheme

__all__ = ["CODES", "NARROW", "code_limits", "dynamic_lanes", "refusing", "within", "without_zero"]

NARROW = (-32, 31)
"""Operands of lanes with four products in a multiplier, and weights -7..7."""
WIDE = (-128, 127)
"""The same of lanes that share a multiplier by three."""
CODES = (-8, 7)
"""Keys and values on Fixed-4 lanes; a multiplier of four products then takes operands -31..31, since -8 * -32 * 4 is no
number of a field, and one of three -127..127, since -8 * -128 * 2 is none."""


def dynamic_lanes(accelerator: Accelerator, codes: tuple[int, int], operand: tuple[int, int]) -> int:
    """How many lanes, from the first on, multiply keys or values between `codes` by operands between `operand`."""
    lanes = accelerator.lanes
    if not within(codes, CODES):
        return lanes.fixed8
    if lanes.triples.start > lanes.fixed8 and not within(operand, _without_multipliers(lanes)):
        return lanes.fixed8
    if not within(operand, (WIDE[0] + 1, WIDE[1])):
        return min(lanes.dynamic, lanes.triples.start)
    if not within(operand, (NARROW[0] + 1, NARROW[1])):
        return min(lanes.dynamic, lanes.quads.start)
    return lanes.dynamic


def refusing(lanes: Lanes, operand: tuple[int, int]) -> frozenset[int]:
    """The Fixed-4 lanes whose operands cannot be all codes between those of `operand`."""
    refused = set()
    if not within(operand, NARROW):
        refused.update(lanes.quads)
    if not within(operand, WIDE):
        refused.update(lanes.triples)
    if not within(operand, _without_multipliers(lanes)):
        refused.update(range(lanes.fixed8, lanes.triples.start))
    return frozenset(refused)


def without_zero(lanes: Lanes, weights: np.ndarray, schemes: np.ndarray) -> frozenset[int]:
    """The Binary lanes, where rows (O, ...) of that scheme have zeros: chunks reach beyond the layer's channels or pixels."""
    if (weights[schemes == Scheme.BINARY] != 0).all():
        return frozenset()
    return frozenset(range(lanes.total - lanes.binary, lanes.total))


def _without_multipliers(lanes: Lanes) -> tuple[int, int]:
    """What Fixed-4 lanes without multipliers take."""
    half = 1 << lanes.fixed4_operand_bits - 1
    return (-128, 255) if half == 256 else (-half, half - 1)


def within(found: tuple[int, int], limits: tuple[int, int]) -> bool:
    """Whether codes from the first to the second of `found` are all within `limits`."""
    return limits[0] <= found[0] and found[1] <= limits[1]


def code_limits(graph: Graph) -> dict[str, tuple[int, int]]:
    """Least and largest code of each tensor, its zero point (of padding) included."""
    info = {8: np.iinfo(np.int8), 16: np.iinfo(np.int16)}
    limits = {name: (int(info[8].min), int(info[8].max)) for name in (graph.input,)}
    for operator in graph.operators:
        for place in (operator, getattr(operator, "drain", None)):
            second = getattr(place, "second", None)
            if second is not None:
                limits[second.tensor] = second.lo, second.hi
            if hasattr(place, "lo"):
                limits[operator.output] = place.lo, place.hi
        if operator.output not in limits:
            sources = [limits[name] for name in reads(operator)] or [(int(info[16].min), int(info[16].max))]
            limits[operator.output] = min(lo for lo, _ in sources), max(hi for _, hi in sources)
    points = {name: graph.tensor(name).zero_point for name in limits}
    return {name: (min(lo, points[name]), max(hi, points[name])) for name, (lo, hi) in limits.items()}
