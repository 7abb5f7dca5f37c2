"""Symbolic values of an exported graph: which element of which operator's output each torch element is.

A `View` holds, in the shape that torch sees, the element numbers of its base in the base's own order (batch,
positions, channels). Every operator that only moves data (reshape, permute, unbind, chunk, select ...) therefore
runs as itself on the numbers, whatever its spelling, and an operator that computes asks for the order that it
needs. Splitting a fused projection is then a choice of its weight's rows.
"""

from __future__ import annotations

import dataclasses

import torch

__all__ = [
    "Draft",
    "Scores",
    "Unsupported",
    "View",
    "affine",
    "by_position",
    "dense",
    "in_base_order",
    "ordered",
]


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

    Two kinds besides those of `floatgraph.Node`: "opaque" is the result of an unsupported operator, "pad" is zero
    padding that waits for a convolution.
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
    """A torch value: `index` has its shape and holds element numbers of (N, *base.shape)."""

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
    normalized: bool = False

    def at(self, index: torch.Tensor) -> Scores:
        return dataclasses.replace(self, index=index)

    @property
    def tainted(self) -> bool:
        return self.queries.base.tainted or self.keys.base.tainted


def _layout_error(base: Draft, wanted: str) -> Unsupported:
    return Unsupported(
        f"the elements of {base.path or 'the input'} {base.shape} arrive in an order that is not {wanted}",
        "keep heads, tokens, pixels and channels whole: reshape and permute only between (N, C, H, W) and (N, T, C)",
        layout=True,
    )


def _variant(base: Draft, key: object, **changes: object) -> Draft:
    if key not in base.derived:
        base.derived[key] = dataclasses.replace(base, derived={}, **changes)
    return base.derived[key]


def _rows(base: Draft, rows: torch.Tensor) -> Draft:
    """The linear or convolution that computes only these output channels, in this order."""
    params = {name: value[rows] for name, value in base.params.items()}
    changes = {"params": params, "shape": (*base.shape[:-1], len(rows))}
    if len(rows) < base.channels:
        changes |= {"part_of": base.path, "path": f"{base.path}.rows{int(rows[0])}"}
    return _variant(base, ("rows", tuple(rows.tolist())), **changes)


def _has_free_rows(base: Draft) -> bool:
    return base.kind == "linear" or (base.kind == "conv" and base.attrs["groups"] == 1)


def _reshaped(base: Draft, shape: tuple[int, ...]) -> Draft:
    if base.shape == shape:
        return base
    key = ("reshape", shape)
    if key not in base.derived:
        base.derived[key] = Draft(
            kind="reshape",
            path=f"{base.path}.reshape" if base.path else "reshape",
            inputs=(base,),
            shape=shape,
            attrs={"shape": shape, "tainted": base.tainted},
        )
    return base.derived[key]


def _is_whole(view: View, batch: int) -> bool:
    total = batch * view.base.size
    if view.index.numel() != total:
        return False
    hit = torch.zeros(total, dtype=torch.bool)
    hit[view.index.reshape(-1)] = True
    return bool(hit.all())


def dense(view: View, batch: int) -> View:
    """The same elements as a view of a base that has each of them exactly once.

    Inserts a slice where tokens are left out, and computes fewer rows where channels are.
    """
    if _is_whole(view, batch):
        return view
    base, flat = view.base, view.index.reshape(-1)
    channels = torch.unique(flat % base.channels)
    positions = torch.unique((flat % base.size) // base.channels)
    if batch * len(positions) * len(channels) != len(flat) or len(torch.unique(flat)) != len(flat):
        raise _layout_error(base, "whole tokens or channels, each once")
    number = torch.full((batch * base.size,), -1)
    if len(channels) < base.channels:
        if not _has_free_rows(base):
            raise Unsupported(
                f"takes {len(channels)} of the {base.channels} channels of {base.path or 'the input'}",
                "take channels only of a linear layer or ungrouped convolution, before any activation",
                layout=True,
            )
        base = _rows(base, channels)
    if len(positions) < view.base.size // view.base.channels:
        start, count = int(positions[0]), len(positions)
        if int(positions[-1]) - start + 1 != count:
            raise _layout_error(base, "one run of tokens")
        tokens = _reshaped(base, (base.size // base.channels, base.channels))
        key = ("slice", start, count)
        if key not in tokens.derived:
            tokens.derived[key] = Draft(
                kind="slice",
                path=f"{base.path}.slice" if base.path else "slice",
                inputs=(tokens,),
                shape=(count, base.channels),
                attrs={"start": start, "count": count, "tainted": base.tainted},
            )
        base = tokens.derived[key]
    kept = torch.arange(batch * view.base.size).reshape(batch, -1, view.base.channels)
    number[kept[:, positions][:, :, channels].reshape(-1)] = torch.arange(batch * base.size)
    return View(base, number[view.index])


def ordered(view: View, shape: tuple[int, ...], batch: int, *, flat: bool = False) -> Draft:
    """The node whose output is exactly `view.index` taken as (N, *shape); with `flat`, any shape of that order."""
    view = dense(view, batch)
    base = view.base
    index = view.index.reshape(-1, base.channels)
    if not torch.equal(index.reshape(-1), torch.arange(index.numel())):
        rows = index[0] % base.channels
        canonical = torch.arange(index.numel()).reshape(-1, base.channels)
        if not (_has_free_rows(base) and torch.equal(index, canonical[:, rows])):
            raise _layout_error(base, f"channels-last {shape}")
        base = _rows(base, rows)
    if base.shape == shape or flat:
        return base
    if shape[-1] != base.channels and shape != (1, base.size):
        raise _layout_error(base, f"channels-last {shape}")
    return _reshaped(base, shape)


def by_position(view: View, width: int, batch: int) -> tuple[Draft, torch.Tensor, torch.Tensor]:
    """For an operator on the last axis, of length `width`: the node, the position of each row of the value in
    (N * positions), and the channel of each element of a row. Pixels that torch sees as tokens become tokens."""
    view = dense(view, batch)
    base = view.base
    if len(base.shape) == view.index.dim() == 3 and base.size > base.channels == width:
        base = _reshaped(base, (base.size // width, width))
    if base.channels != width and base.size == width:
        base = _reshaped(base, (1, width))
    if base.channels != width:
        raise _layout_error(base, f"rows of {width} channels")
    index = view.index.reshape(-1, width)
    positions, rows = index[:, 0] // width, index[0] % width
    if not torch.equal(index, positions[:, None] * width + rows):
        raise _layout_error(base, f"rows of {width} channels")
    return base, positions, rows


def in_base_order(view: View, constant: torch.Tensor, batch: int) -> torch.Tensor:
    """A constant that meets a dense view elementwise, as an array of the base's shape."""
    spread = torch.empty(batch * view.base.size)
    spread[view.index.reshape(-1)] = constant.to(torch.float32).expand(view.index.shape).reshape(-1)
    spread = spread.reshape(batch, *view.base.shape)
    if not all(torch.equal(spread[0], other) for other in spread[1:]):
        raise Unsupported(
            "a constant differs between the images of a batch", "use one constant for all images"
        )
    return spread[0]


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
    return None


def affine(view: View, scale: torch.Tensor | None, shift: torch.Tensor | None, batch: int, path: str) -> View:
    """view * scale + shift with constants that broadcast to the view's shape: folded into the linear,
    convolution or LayerNorm that made the view where they are per channel, an `add` where only the shift is not.
    """
    view = dense(view, batch)
    base = view.base
    scale = torch.ones(base.shape) if scale is None else in_base_order(view, scale, batch)
    shift = torch.zeros(base.shape) if shift is None else in_base_order(view, shift, batch)
    by_row, shift_by_row = _per_channel(scale), _per_channel(shift)
    unscaled = bool((scale == 1).all())
    if unscaled and bool((shift == 0).all()):
        return view
    if by_row is not None and shift_by_row is not None:
        folded = _folded(base, by_row, shift_by_row)
        if folded is not None:
            return View(folded, view.index)
    if unscaled:
        params = {"constant": shift}
        node = Draft(kind="add", path=path, inputs=(base,), shape=base.shape, params=params)
    elif by_row is not None and shift_by_row is not None and len(base.shape) == 3:
        attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "groups": base.channels}
        params = {"weight": by_row.reshape(-1, 1, 1, 1), "bias": shift_by_row}
        node = Draft(kind="conv", path=path, inputs=(base,), shape=base.shape, params=params, attrs=attrs)
    else:
        raise Unsupported(
            f"multiplies the output of {base.path or 'the input'} by a constant that no layer can absorb",
            "scale the output of a linear layer, convolution or LayerNorm instead, by one factor per channel",
        )
    node.attrs["tainted"] = base.tainted
    return View(node, view.index)
