"""Symbolic values of an exported graph: which element of which operator's output each torch element is.

A `View` holds, in the shape that torch sees, the element numbers of its base in the base's own order (batch,
positions, channels). Every operator that only moves data (reshape, permute, unbind, chunk, select ...) therefore
runs as itself on the numbers, whatever its spelling, and an operator that computes asks for the order that it
needs. Splitting a fused projection is then a choice of its weight's rows.
"""

from __future__ import annotations

import dataclasses

import torch

__all__ = ["Draft", "Scores", "Unsupported", "View", "layout_error"]


class Unsupported(Exception):
    """One operator that cannot be imported; `layout` marks complaints about the order of elements only, `origin`
    an earlier operator that is to blame."""

    def __init__(
        self, reason: str, remedy: str, *, layout: bool = False, origin: tuple[str, str] | None = None
    ):
        super().__init__(reason)
        self.reason, self.remedy, self.layout, self.origin = reason, remedy, layout, origin


@dataclasses.dataclass(eq=False, kw_only=True)
class Draft:
    """A node of the float graph while it is built; compared by identity, named at the end.

    One kind besides those of `floatgraph.Node`: "opaque" is the result of an unsupported operator.
    """

    kind: str
    path: str
    shape: tuple[int, ...]
    inputs: tuple[Draft, ...] = ()
    params: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    attrs: dict[str, object] = dataclasses.field(default_factory=dict)
    part_of: str = ""
    """The path of the layer some rows of which this one computes."""
    derived: dict[object, Draft] = dataclasses.field(default_factory=dict, repr=False)
    """Variants of this node with other rows, scales or shapes, so that two users share one."""

    @property
    def size(self) -> int:
        """Elements of one image."""
        return torch.Size(self.shape).numel()

    @property
    def channels(self) -> int:
        return self.shape[-1]

    @property
    def tainted(self) -> bool:
        """True behind an unsupported operator, where the order of elements is a guess."""
        return self.kind == "opaque" or self.attrs.get("tainted", False)

    def view(self, batch: int) -> View:
        """All elements in their own order, (N, *shape)."""
        return View(self, torch.arange(batch * self.size).reshape(batch, *self.shape))


@dataclasses.dataclass(eq=False)
class View:
    """A torch value: `index` has its shape and holds element numbers of (N, *base.shape), or -1 for a zero that
    was padded."""

    base: Draft
    index: torch.Tensor

    def at(self, index: torch.Tensor) -> View:
        return View(self.base, index)


@dataclasses.dataclass(eq=False)
class Scores:
    """q.k of an attention on its way to P.V; `index` numbers its elements in the order (..., queries, keys)."""

    queries: View
    keys: View
    """(..., T, head_dim), not transposed."""
    scale: float
    index: torch.Tensor
    origin: tuple[str, str]
    """Module path and operator of the product."""
    bias: torch.Tensor | None = None
    """Added to the scaled product, in the order that `index` numbers; -inf masks."""
    normalized: bool = False
    quantized: dict[str, object] | None = None
    """What `fake_quantize` did last to the scaled scores before softmax, bias included: its arguments by name."""
    probabilities: dict[str, object] | None = None
    """The same of softmax's results."""

    def at(self, index: torch.Tensor) -> Scores:
        return dataclasses.replace(self, index=index)

    @property
    def tainted(self) -> bool:
        return self.queries.base.tainted or self.keys.base.tainted


def layout_error(base: Draft, wanted: str) -> Unsupported:
    return Unsupported(
        f"the elements of {base.path or 'the input'} {base.shape} arrive in an order that is not {wanted}",
        "keep heads, tokens, pixels and channels whole: reshape and permute only between (N, C, H, W) and (N, T, C)",
        layout=True,
    )
