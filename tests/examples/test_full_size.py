"""Rows of the table of full-size models, on a small network: what they hold, and that graphs are kept."""

import numpy as np
import pytest
from torch import nn

from terrazzo import results_table
from terrazzo.boards import demo_accelerator
from terrazzo.examples import full_size
from terrazzo.sim import cycle


class Small(nn.Module):
    """Depthwise and plain convolutions; with `norm`, one that import refuses."""

    def __init__(self, norm: bool):
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.norm, self.head = nn.GroupNorm(2, 16) if norm else nn.Identity(), nn.Linear(16, 12)

    def forward(self, x):
        return self.head(self.norm(self.depth(self.stem(x).relu()).relu()).mean((2, 3)))


class Fixed:
    """An architecture that needs no library."""

    model, size = "Small", 16

    def __init__(self, norm: bool):
        self.norm, self.built = norm, 0

    def build(self) -> nn.Module:
        self.built += 1
        return Small(self.norm).eval()


@pytest.fixture
def models(monkeypatch):
    made = {"good": Fixed(False), "bad": Fixed(True)}
    monkeypatch.setattr(full_size, "MODELS", made)
    monkeypatch.setattr(full_size, "ACCELERATOR", demo_accelerator())
    return made


def job(row: str, folder) -> results_table.Job:
    return results_table.Job(row=row, data=None, files=folder)


def test_a_row_goes_all_the_way_and_keeps_its_graph(models, tmp_path):
    good = full_size.measure(job("good", tmp_path))
    assert good["equal"] and good["distinct_output_codes"] > 4 and good["parameters"] == 812
    assert list(good["steps"])[:3] == ["build", "import", "equalize"] and "compile" in good["steps"]
    assert good["macs"] == 64 * 16 * (27 + 9) + 16 * 12
    (layer,) = good["depthwise"].values()
    assert layer["macs"] == 64 * 16 * 9 and 0 < layer["cycles"] <= good["cycles"]
    again = full_size.measure(job("good", tmp_path))
    assert models["good"].built == 1 and again["cycles"] == good["cycles"]
    assert again["steps"]["import"] == good["steps"]["import"], "of the run that made the graph"


def test_what_is_refused_has_reasons(models, tmp_path):
    bad = full_size.measure(job("bad", tmp_path))
    assert bad["reasons"] == ["group_norm: the operator has no hardware"] and "equal" not in bad
    assert not list(tmp_path.iterdir())
    text = full_size.table({"bad": bad, "good": full_size.measure(job("good", tmp_path))})
    assert "| `bad` | `Small` | 16 |" in text and "group_norm" in text and "| `good` | 1 |" in text


def test_occupied_cycles_do_not_overlap(models, tmp_path):
    from terrazzo.arch.graph import Graph
    from terrazzo.compiler import compile

    full_size.measure(job("good", tmp_path))
    program = compile(Graph.load(tmp_path / "full-size-good.graph"), demo_accelerator())
    timing = cycle.predict(program, full_size.MEMORY)
    found = full_size.occupied(program, timing)
    assert 0 < sum(found.values()) <= timing.cycles
    assert set(found) <= {layer.tag for layer in program.layers} and np.all(list(found.values()))
