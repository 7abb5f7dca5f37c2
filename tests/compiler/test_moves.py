"""What moves and multiplies: programs compute what the reference does, on two machines."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.compiler import compile
from terrazzo.sim import functional, reference

from ..graphs import DEMO, OTHER, random_codes
from ..moves import KINDS, moving_graph

INDEXED = ("_gathered", "_stacked", "_attended")


def equal(graph, accelerator, seed) -> bool:
    codes = random_codes(graph, 2, seed)
    expected = reference.run(graph, codes)
    assert len(np.unique(expected)) > 2
    got = functional.run(compile(graph, accelerator), codes)
    return np.array_equal(got.reshape(expected.shape), expected)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k.__name__ not in INDEXED], ids=lambda k: k.__name__)
@pytest.mark.parametrize("seed", range(4))
def test_every_kind(kind, accelerator, seed):
    assert equal(moving_graph(seed, accelerator, [kind]), accelerator, seed)
