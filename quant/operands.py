"""What the handlers of `patterns` share: where an operator stands, and the demands on its arguments."""

from __future__ import annotations

import dataclasses

import torch

from .orders import ordered
from .views import Draft, Scores, Unsupported, View

__all__ = [
    "Call",
    "Value",
    "as_constant",
    "as_pair",
    "image_node",
    "image_view",
    "need_constant",
    "need_view",
    "padded_node",
    "taint",
]

Value = View | Scores | torch.Tensor
"""What depends on the image, or a constant."""


@dataclasses.dataclass(frozen=True)
class Call:
    """Where an operator stands, for handlers."""

    batch: int
    path: str
    """Module path, for findings."""
    op: str
    leaf: bool
    """Whether the module is one of torch's own layers, so that its path names the node."""
    shape: tuple[int, ...]
    """Of the (first) output in torch."""
    names: dict[int, str]
    """Parameter path by the id of a constant."""

    def name(self, kind: str, weight: torch.Tensor | None = None) -> str:
        """The wanted name of a node: the layer's own path, else the weight's, else the module's and the kind."""
        if weight is not None and id(weight) in self.names:
            return self.names[id(weight)].removesuffix("weight").rstrip("._") or kind
        if self.leaf:
            return self.path
        return f"{self.path}.{kind}" if self.path else kind


def need_view(value: Value, what: str = "the input") -> View:
    """The value, which must depend on the image and be no attention scores."""
    if isinstance(value, Scores):
        state = "attention probabilities are" if value.normalized else "a product of two activations is"
        raise Unsupported(
            f"{state} used outside softmax(q.k).v",
            "use scaled_dot_product_attention; no other product of activations has hardware",
            layout=value.tainted,
            origin=value.origin,
        )
    if not isinstance(value, View):
        raise Unsupported(f"{what} is a constant", "compute on the image, or fold the constant yourself")
    return value


def need_constant(value: Value, what: str) -> torch.Tensor:
    """The value in float32, which must not depend on the image."""
    if not isinstance(value, torch.Tensor):
        raise Unsupported(f"{what} depends on the image", "use a parameter or constant")
    return value.to(torch.float32)


def as_constant(value: object) -> torch.Tensor | None:
    """A number or constant as a float32 tensor; None for what depends on the image."""
    if isinstance(value, int | float):
        return torch.tensor(float(value))
    return value.to(torch.float32) if isinstance(value, torch.Tensor) else None


def as_pair(value: object) -> tuple[int, int]:
    """(rows, columns) of an argument that may be one number for both."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def image_node(call: Call, value: Value) -> Draft:
    """The (H, W, C) node of a value (N, C, H, W)."""
    view = need_view(value)
    if view.index.dim() != 4:
        raise Unsupported(f"the input has {view.index.dim()} axes", "pass (N, C, H, W)")
    index = view.index.permute(0, 2, 3, 1)
    return ordered(view.at(index), tuple(index.shape[1:]), call.batch)


def padded_node(call: Call, value: Value) -> tuple[Draft, tuple[int, int, int, int]]:
    """The (H, W, C) node of a value (N, C, H, W) without its border of zeros, and the width of the border."""
    view = need_view(value)
    if view.index.dim() == 4:
        inside = (view.index >= 0).any(dim=1).any(dim=0)
        rows, columns = (torch.nonzero(inside.any(dim=axis)).reshape(-1) for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        bottom, right = inside.shape[0] - 1 - int(rows[-1]), inside.shape[1] - 1 - int(columns[-1])
        within = view.index[:, :, top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
        return image_node(call, view.at(within)), (top, bottom, left, right)
    return image_node(call, value), (0, 0, 0, 0)


def image_view(call: Call, draft: Draft) -> View:
    """(N, C, H, W) of an (H, W, C) node."""
    return View(draft, draft.view(call.batch).index.permute(0, 3, 1, 2))


def taint(*drafts: Draft) -> dict[str, object]:
    """The attribute that marks a node as standing behind an unsupported operator."""
    return {"tainted": any(draft.tainted for draft in drafts)}
