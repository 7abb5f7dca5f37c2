"""Which cases of a large random test every run takes; `make test-full` takes all of them."""

import itertools
from collections.abc import Sequence

import pytest

__all__ = ["pairs", "seeds"]


def seeds(count: int, always: int = 1) -> list:
    """Seeds 0..count - 1 as parameters, of which the first `always` are not marked full."""
    return [seed if seed < always else _full(seed) for seed in range(count)]


def pairs(names: Sequence, count: int) -> list:
    """Every name with seeds 0..count - 1, of which one of each name, another for the next name, is not marked full."""
    names = list(names)
    cases = itertools.product(range(len(names)), range(count))
    return [
        (names[number], seed) if seed == number % count else _full(names[number], seed)
        for number, seed in cases
    ]


def _full(*values):
    return pytest.param(*values, marks=pytest.mark.full)
