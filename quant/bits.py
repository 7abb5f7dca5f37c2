"""Bits of activations by class of tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .units import QuantizeError, Unit

__all__ = ["CLASSES", "activation_classes", "bits_by_class", "exp_levels"]

CLASSES = {
    "q": "queries",
    "k": "keys",
    "v": "values",
    "e": "exponentials of attention",
    "attended": "outputs of attention",
    "normalized": "outputs of LayerNorm",
    "hidden": "outputs of a table: GELU, SiLU ...",
    "grouped": "what depthwise and grouped convolutions alone read, whose rows are Fixed-8 in every mixture",
    "other": "everything else, and what a mapping leaves out",
}
"""Classes that can have bits of their own. The input has 8, the residual stream 16."""


def bits_by_class(bits: int | Mapping[str, int]) -> dict[str, int]:
    """Bits of every class. Raises QuantizeError for unknown classes and for bits other than 4..8.

    One number narrows stored tensors; exponentials keep 8 bits unless "e" is named.
    """
    named = {"other": bits} if not isinstance(bits, Mapping) else dict(bits)
    if unknown := sorted(set(named) - set(CLASSES)):
        raise QuantizeError(
            f"activation_bits must name classes among {', '.join(CLASSES)}, not {', '.join(unknown)}"
        )
    for value in named.values():
        if not isinstance(value, int) or not 4 <= value <= 8:
            raise QuantizeError(f"activation_bits must be 4..8, not {value}")
    other = named.get("other", 8)
    return {name: named.get(name, 8 if name == "e" else other) for name in CLASSES}


def activation_classes(units: list[Unit], root: Mapping[str, str]) -> dict[str, str]:
    """The class of every value that has one other than "other", by the root of its codes."""
    readers: dict[str, list[Unit]] = {}
    for unit in units:
        for name in {root[name] for name in (*unit.anchor.inputs, unit.residual) if name is not None}:
            readers.setdefault(name, []).append(unit)
    found = {
        name: "grouped"
        for name, its in readers.items()
        if all(unit.anchor.attrs.get("groups", 1) > 1 and unit.residual != name for unit in its)
    }
    for unit in units:
        if unit.anchor.kind == "layernorm":
            found[root[unit.out]] = "normalized"
        elif unit.table:
            found[root[unit.out]] = "hidden"
    for unit in units:
        if unit.anchor.kind == "attention":
            found |= {root[name]: part for name, part in zip(unit.anchor.inputs, "qkv", strict=False)}
            found[root[unit.out]] = "attended"
    return found


def exp_levels(table: np.ndarray, bits: int) -> np.ndarray:
    """A table of exponentials (256,), uint8, as codes of `bits` bits: 0 and 255 become 0 and 2**bits - 1. Softmax divides by
    their sum, so that the step does not matter."""
    return np.rint(table * (((1 << bits) - 1) / 255)).astype(np.uint8)
