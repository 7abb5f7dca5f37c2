"""Families of functions: exact ones, or those of published integer transformers, in the nodes of a float graph.

i-vit     GELU is ShiftGELU, softmax Shiftmax, and LayerNorm adds no eps to the variance (I-LayerNorm iterates an integer
          square root, of which the table of reciprocal roots is the result)
heatvit   GELU and softmax are polynomials, times 0.5 where the paper has delta1 and delta2; sigmoid is PLAN
Every other function stays exact. What the tables hold is defined in `arch.published`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from ..arch import published
from .floatgraph import ACTIVATIONS, Node
from .units import QuantizeError

__all__ = ["FAMILIES", "check_functions", "problems", "replaced", "table_values"]

_GELU = ("gelu", "gelu_tanh", "quick_gelu")
_KINDS = {
    "exact": {},
    "i-vit": dict.fromkeys(_GELU, "shift_gelu"),
    "heatvit": dict.fromkeys(_GELU, "polynomial_gelu") | {"sigmoid": "plan_sigmoid"},
}
FAMILIES = tuple(_KINDS)
_SOFTMAX = {"i-vit": {"exp": "shift"}, "heatvit": {"exp": "polynomial", "share": 0.5}}
_NO_EPS = 1e-30
"""eps_I is 1 for it at any step: what LayerNorm of a constant row needs."""


def replaced(node: Node, functions: str) -> Node:
    """The node with the functions of a family."""
    match node.kind:
        case "act":
            kind = node.attrs["kind"]
            return dataclasses.replace(node, attrs=node.attrs | {"kind": _KINDS[functions].get(kind, kind)})
        case "attention":
            return dataclasses.replace(node, attrs=node.attrs | _SOFTMAX.get(functions, {}))
        case "layernorm" if functions == "i-vit":
            return dataclasses.replace(node, attrs=node.attrs | {"eps": _NO_EPS})
    return node


def check_functions(functions: str) -> None:
    """Raises QuantizeError for an unknown family."""
    if functions not in FAMILIES:
        raise QuantizeError(f"functions must be one of {', '.join(FAMILIES)}, not {functions!r}")


def table_values(kind: str, codes: np.ndarray, step: float) -> np.ndarray:
    """Real values float64 of an activation for all codes of a table's index, at `step` and without zero point."""
    if kind == "shift_gelu":
        return published.shift_gelu(codes, step) * (step / 128)
    return ACTIVATIONS[kind](torch.from_numpy(codes * step)).numpy()


def problems(name: str, kind: str, codes: np.ndarray, step: float) -> Iterator[str]:
    """Why the activation `name` cannot be this function of these codes."""
    top = max(int(codes.max()), 0)
    if kind == "shift_gelu" and not published.shift_gelu_fits(step, top):
        yield (
            f"{name}: ShiftGELU must see values of at most 9.4, not {top * step:.2f}, where its exponential ends; "
            'take functions "exact" or "heatvit"'
        )
