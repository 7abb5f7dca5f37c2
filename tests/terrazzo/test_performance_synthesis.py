"""The table of counted resources: what is counted is what is simulated, and cells are those of the count."""

from pathlib import Path

import pytest

from terrazzo import performance, performance_synthesis, results_table
from terrazzo.boards import ZCU102, estimate, paths
from terrazzo.boards.board import Resources
from terrazzo.boards.synthesis import verilog
from terrazzo.synthetic import deit

from ..tiny import MACHINE

ROW = "deit-t-fixed8"


def path(levels: int) -> paths.Path:
    return paths.Path(levels=levels, start="", end="")


@pytest.fixture
def counted(monkeypatch):
    """What the tiny machine is said to occupy; three modules with paths."""
    found = Resources(lut=27_408, ff=54_816, dsp=252, bram=91.5)
    row = performance.Row(
        model="tiny", network=deit, accelerator=MACHINE, accuracy="", published="", frames=1, utilization=1
    )
    monkeypatch.setitem(performance.ROWS, ROW, row)
    longest = [
        paths.ModulePaths(
            module=f"terrazzo_top_{name}",
            instances=1,
            own=path(4),
            whole=path(levels),
            through=None,
            passes=0,
        )
        for name, levels in (("a", 10), ("b", 12), ("c", 11))
    ]
    monkeypatch.setattr(performance_synthesis, "count", lambda *_: found)
    monkeypatch.setattr(performance_synthesis, "paths", lambda *_: longest)
    return found


def measured() -> dict:
    return performance_synthesis.measure(results_table.Job(row=ROW, data=None, files=Path()))


def test_a_row_is_counted_and_shown(counted):
    found = measured()
    assert found["resources"]["lut"] == counted.lut and found["fits"] and found["equal"]
    assert found["shares"] == {"lut": 0.1, "ff": 0.1, "dsp": 0.1, "bram": 0.1003}
    cells = performance_synthesis.table({ROW: found}).splitlines()[-1]
    assert "27,408 = 10.0%" in cells and "12 in b; 2 of 3 modules above" in cells
    assert f"{estimate(MACHINE, ZCU102).lut / 27_408 - 1:+.1%}" in cells


def test_only_modules_of_primitives_differ_from_the_simulation():
    found = performance_synthesis.replaced(MACHINE, verilog(MACHINE, ZCU102))
    assert found and all("DSP48E2" in body for body in found.values())


def test_another_difference_is_told(counted, monkeypatch):
    text = verilog(MACHINE, ZCU102)
    changed = text.replace("module terrazzo_top(", "// other\nmodule terrazzo_top(\n  ", 1)
    monkeypatch.setattr(performance_synthesis, "verilog", lambda *_: changed)
    assert changed != text and not measured()["equal"]


@pytest.mark.parametrize("name, most", [("lut", 232_968), ("dsp", 2_394), ("bram", 820.5), ("ff", 548_160)])
def test_a_design_beyond_its_share_does_not_fit(counted, monkeypatch, name, most):
    for amount, fits in ((most, True), (most + 1, False)):
        used = Resources(**{**dict(lut=1, ff=1, dsp=1, bram=1), name: amount})
        monkeypatch.setattr(performance_synthesis, "count", lambda *_, used=used: used)
        assert measured()["fits"] == fits
