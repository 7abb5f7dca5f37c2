"""Nodes that choose positions and channels of another node.

Each is made once and kept in its base's `derived`, so that two readers share it. Positions are moved as early as
that costs nothing: before the linear layer that would work on them, once for all layers behind one input.
"""

from __future__ import annotations

import dataclasses

import torch

from .views import Draft

__all__ = ["choose_channels", "choose_positions", "concatenated", "has_free_rows", "reshaped", "variant"]

_POINTWISE = ("act", "quant", "gather", "slice", "maxpool", "avgpool")


def variant(base: Draft, key: object, **changes: object) -> Draft:
    """The copy of `base` with these changes, the same one for the same key."""
    if key not in base.derived:
        base.derived[key] = dataclasses.replace(base, derived={}, **changes)
    return base.derived[key]


def _follower(base: Draft, key: object, kind: str, shape: tuple[int, ...], **fields: dict) -> Draft:
    if key not in base.derived:
        attrs = {**fields.get("attrs", {}), "tainted": base.tainted}
        base.derived[key] = Draft(
            kind=kind,
            path=f"{base.path}.{kind}" if base.path else kind,
            inputs=(base,),
            shape=shape,
            attrs=attrs,
            params=fields.get("params", {}),
        )
    return base.derived[key]


def has_free_rows(base: Draft) -> bool:
    """Whether any selection of the node's channels can be computed without computing the others."""
    if base.kind in _POINTWISE or (base.kind == "reshape" and base.channels == base.inputs[0].channels):
        return has_free_rows(base.inputs[0])
    if base.kind in ("add", "multiply"):
        return all(has_free_rows(part) for part in base.inputs)
    return base.kind == "linear" or (base.kind == "conv" and base.attrs["groups"] == 1)


def choose_channels(base: Draft, rows: torch.Tensor) -> Draft:
    """The node whose channel i is channel rows[i] of `base`, or zero where rows[i] is -1."""
    if torch.equal(rows, torch.arange(base.channels)):
        return base
    void = rows < 0
    key = ("rows", tuple(rows.tolist()))
    computes = base.kind == "linear" or (base.kind == "conv" and base.attrs["groups"] == 1)
    if not (computes or (has_free_rows(base) and not bool(void.any()))):
        weight = torch.zeros(len(rows), base.channels)
        weight[torch.arange(len(rows))[~void], rows[~void]] = 1.0
        params = {"weight": weight, "bias": torch.zeros(len(rows))}
        return _follower(base, key, "linear", (*base.shape[:-1], len(rows)), params=params)
    changes: dict[str, object] = {"shape": (*base.shape[:-1], len(rows))}
    if computes:
        changes["params"] = {name: value[rows] for name, value in base.params.items()}
        for value in changes["params"].values():
            value[void] = 0
    else:
        changes["inputs"] = tuple(choose_channels(part, rows) for part in base.inputs)
        if "constant" in base.params:
            changes["params"] = {"constant": base.params["constant"][..., rows]}
        if base.kind == "reshape":
            changes["attrs"] = base.attrs | {"shape": changes["shape"]}
    if len(rows) < base.channels:
        changes |= {"part_of": base.path, "path": f"{base.path}.rows{int(rows[0])}"}
    return variant(base, key, **changes)


def reshaped(base: Draft, shape: tuple[int, ...]) -> Draft:
    """The same elements in the same order."""
    if base.shape == shape:
        return base
    if base.kind == "reshape":
        return reshaped(base.inputs[0], shape)
    return _follower(base, ("reshape", shape), "reshape", shape, attrs={"shape": shape})


def choose_positions(base: Draft, index: torch.Tensor, shape: tuple[int, ...]) -> Draft:
    """The node of `shape` whose position p is position index[p] of `base`, or zeros where index[p] is -1."""
    positions = base.size // base.channels
    if torch.equal(index, torch.arange(positions)):
        return reshaped(base, shape)
    void = index < 0
    if base.kind in ("gather", "slice", "reshape") and base.channels == base.inputs[0].channels:
        before = torch.arange(positions)
        if base.kind == "gather":
            before = base.params["index"]
        elif base.kind == "slice":
            before = before + base.attrs["start"]
        return choose_positions(base.inputs[0], torch.where(void, -1, before[index]), shape)
    start = int(index[0])
    if len(shape) == 2 and start >= 0 and torch.equal(index, torch.arange(start, start + len(index))):
        tokens = reshaped(base, (positions, base.channels))
        return _follower(
            tokens, ("slice", start, shape), "slice", shape, attrs={"start": start, "count": len(index)}
        )
    key = ("gather", tuple(index.tolist()), shape)
    if base.kind == "linear" and not bool(void.any()) and len(index) <= positions:
        if key not in base.derived:
            (source,) = base.inputs
            early = choose_positions(source, index, (*shape[:-1], source.channels))
            attrs = base.attrs | {"tainted": early.tainted}
            variant(base, key, inputs=(early,), shape=shape, attrs=attrs)
        return base.derived[key]
    return _follower(base, key, "gather", shape, params={"index": index.clone()})


def concatenated(path: str, parts: list[Draft], axis: str) -> Draft:
    """The channels of the parts at equal positions one after the other, or their positions, as tokens (T, C)."""
    if axis == "channels":
        shape = (*parts[0].shape[:-1], sum(part.channels for part in parts))
    else:
        shape = (sum(part.size for part in parts) // parts[0].channels, parts[0].channels)
    attrs = {"axis": axis, "tainted": any(part.tainted for part in parts)}
    return Draft(kind="concat", path=path, inputs=tuple(parts), shape=shape, attrs=attrs)
