"""Deliberate bugs, each of which some test must catch."""

from __future__ import annotations

import dataclasses

__all__ = ["MUTATIONS", "Mutation"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """Replace `old` (text that occurs once, or a byte range) in `path` by `new`; `tests` must fail."""

    name: str
    path: str
    old: str | tuple[int, int]
    new: str
    tests: tuple[str, ...]


MUTATIONS: tuple[Mutation, ...] = ()
