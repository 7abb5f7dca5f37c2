"""The table of frames in Verilog: a small machine's frame is run and compared, and a difference is told."""

import dataclasses
from pathlib import Path

import pytest

from terrazzo import performance, performance_rtl, results_table
from terrazzo.boards import ZCU102
from terrazzo.sim import cycle

from .. import tiny

ROW = "deit-t-fixed8"


@pytest.fixture
def small(monkeypatch):
    row = performance.Row(
        model="tiny", network=tiny.graph, accelerator=tiny.MACHINE, accuracy="", published="", frames=1
    )
    monkeypatch.setitem(performance.ROWS, ROW, row)
    monkeypatch.setattr(performance.Row, "graph", lambda self: tiny.graph())
    return cycle.predict(performance.program(ROW)[1], ZCU102.interface.memory)


def generated_before(monkeypatch) -> None:
    text = tiny.verilog()  # which makes a Top
    monkeypatch.setattr(performance_rtl.top, "Top", lambda _: None)
    monkeypatch.setattr(performance_rtl, "generate", lambda *_: text)


def measured() -> dict:
    return performance_rtl.measure(results_table.Job(row=ROW, data=None, files=Path()))


def test_a_frame_is_run_and_shown(small):
    found = measured()
    assert found["equal"] and found["mismatches"] == 0 and found["distinct_output_codes"] > 1
    assert found["cycles"] == found["cycle_model_cycles"] == small.cycles
    cells = performance_rtl.table({ROW: found}).splitlines()[-1].split(" | ")
    assert f"{small.cycles:,}" in cells and f"0 of {found['outputs']:,}" in cells


def test_other_cycles_are_told(small, monkeypatch):
    generated_before(monkeypatch)
    other = dataclasses.replace(small, cycles=small.cycles + 1)
    monkeypatch.setattr(performance_rtl.cycle, "predict", lambda *_: other)
    assert not measured()["equal"]


def test_other_outputs_are_told(small, monkeypatch):
    generated_before(monkeypatch)
    right = performance_rtl.reference.run
    monkeypatch.setattr(performance_rtl.reference, "run", lambda *a: right(*a) ^ 1)
    found = measured()
    assert not found["equal"] and found["mismatches"] == found["outputs"]
