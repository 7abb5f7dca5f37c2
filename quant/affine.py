"""Products and sums with constants: folded into the layer before them where that is possible."""

from __future__ import annotations

import dataclasses

import torch

from .moves import reshaped
from .orders import dense, in_base_order
from .views import Draft, View

__all__ = ["affine"]


def _per_channel(constant: torch.Tensor) -> torch.Tensor | None:
    rows = constant.reshape(-1, constant.shape[-1])
    return rows[0] if bool((rows == rows[:1]).all()) else None


def _folded(base: Draft, scale: torch.Tensor, shift: torch.Tensor) -> Draft | None:
    """The node that computes base * scale + shift, per channel, without another operator; None if there is none."""
    match base.kind:
        case "conv" | "linear":
            weight = base.params["weight"]
            weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
            params = {"weight": weight, "bias": base.params["bias"] * scale + shift}
            return dataclasses.replace(base, params=params, derived={})
        case "layernorm":
            params = {"gamma": base.params["gamma"] * scale, "beta": base.params["beta"] * scale + shift}
            return dataclasses.replace(base, params=params, derived={})
        case "add" if not base.params and all(other.kind == "linear" for other in base.inputs):
            first, second = base.inputs  # (a + b) / 2 of two heads
            parts = (_folded(first, scale, shift), _folded(second, scale, torch.zeros_like(shift)))
            return dataclasses.replace(base, inputs=parts, derived={})
        case "reshape" | "slice" | "gather" if base.channels == base.inputs[0].channels:
            padded = "index" in base.params and bool((base.params["index"] < 0).any())
            before = None if padded and bool(shift.any()) else _folded(base.inputs[0], scale, shift)
            return None if before is None else dataclasses.replace(base, inputs=(before,), derived={})
    return None


def _added(path: str, base: Draft, constant: torch.Tensor) -> Draft:
    attrs = {"tainted": base.tainted}
    return Draft(
        kind="add", path=path, inputs=(base,), shape=base.shape, params={"constant": constant}, attrs=attrs
    )


def affine(view: View, scale: torch.Tensor | None, shift: torch.Tensor | None, batch: int, path: str) -> View:
    """view * scale + shift with constants that broadcast with the view.

    Folded into the linear, convolution or LayerNorm that made the view where they are per channel; otherwise a
    depthwise convolution by one number per channel, a `multiply` by a constant, or an `add` of one.
    """
    constants = [constant for constant in (scale, shift) if constant is not None]
    extent = torch.broadcast_shapes(view.index.shape, *(constant.shape for constant in constants))
    view = dense(view.at(view.index.expand(extent)), batch)
    base = view.base
    scale = torch.ones(base.shape) if scale is None else in_base_order(view, scale, batch)
    shift = torch.zeros(base.shape) if shift is None else in_base_order(view, shift, batch)
    by_row, shift_by_row = _per_channel(scale), _per_channel(shift)
    unscaled = bool((scale == 1).all())
    if unscaled and not bool(shift.any()):
        return view
    if by_row is not None and shift_by_row is not None:
        folded = _folded(base, by_row, shift_by_row)
        if folded is not None:
            return View(folded, view.index)
    if unscaled:
        return View(_added(path, base, shift), view.index)
    if by_row is not None and shift_by_row is not None:
        image = reshaped(base, base.shape if len(base.shape) == 3 else (base.shape[0], 1, base.channels))
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": base.channels}
        attrs["tainted"] = base.tainted
        params = {"weight": by_row.reshape(-1, 1, 1, 1), "bias": shift_by_row}
        conv = Draft(kind="conv", path=path, inputs=(image,), shape=image.shape, params=params, attrs=attrs)
        return View(reshaped(conv, base.shape), view.index)
    product = Draft(
        kind="multiply",
        path=path,
        inputs=(base,),
        shape=base.shape,
        params={"constant": scale},
        attrs={"tainted": base.tainted},
    )
    return View(_added(path, product, shift) if bool(shift.any()) else product, view.index)
