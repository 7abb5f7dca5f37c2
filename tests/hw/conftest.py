"""Fixture of the tests of the top."""

import pytest

from terrazzo.arch.memory import MemoryModel
from terrazzo.hw import top

from .top_bench import Bench, accelerator, stranger_matrix, stranger_vector


@pytest.fixture
def bench(monkeypatch):
    """Make a Bench of a small machine without matrix and vector engines; keywords as for Bench and accelerator."""
    monkeypatch.setattr(top.matrix, "Engine", stranger_matrix)
    monkeypatch.setattr(top.vector, "Engine", stranger_vector)

    def make(model: MemoryModel | None = None, host_seed: int | None = None, **changes) -> Bench:
        return Bench(accelerator(**changes), model, host_seed=host_seed)

    return make
