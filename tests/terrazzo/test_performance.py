"""The table of frames per second: its rows compile, and its cells are those of the row."""

import dataclasses
from pathlib import Path

import pytest

from terrazzo import performance, results, results_table
from terrazzo.arch.errors import UserError
from terrazzo.arch.schemes import Scheme
from terrazzo.boards import PYNQ_Z1, ZCU102, estimate
from terrazzo.boards.search import Budget
from terrazzo.compiler.needed import needed
from terrazzo.sim import cycle
from terrazzo.synthetic import deit


def test_a_row_is_predicted_and_shown(monkeypatch):
    row = performance.ROWS["deit-t-fixed8"]
    small = deit(64, 1, 1, image=64)
    monkeypatch.setattr(performance.Row, "graph", lambda self: small)
    found = performance.measure(results_table.Job(row="deit-t-fixed8", data=None, files=Path()))
    _, program = performance.program("deit-t-fixed8")
    expected = cycle.predict(program, ZCU102.interface.memory).cycles
    assert found["cycles"] == expected and found["multipliers"] == 5120
    assert found["frames_per_second"] == round(150e6 / expected, 1)
    assert sum(found["matrix_engine"].values()) <= expected
    computed = needed(small)
    useful = sum(computed.macs(operator) for operator in computed.operators)
    assert found["utilization"] == round(useful / (5120 * expected), 4)
    cells = performance.table({"deit-t-fixed8": found}).splitlines()[-1].split(" | ")
    assert {f"{expected:,}", row.published, "64 x 5 x 16"} <= set(cells)


def test_accuracies_are_those_of_the_document(monkeypatch, tmp_path):
    document = tmp_path / "results.md"
    document.write_text(
        "| `some-row` | deit-tiny | FIXED8 33 FIXED4 67 | A8 | 128 | 372 | 78.76 | 78.5 | 90 |\n"
    )
    monkeypatch.setattr(performance, "RESULTS", document)
    found = performance.accuracy("some-row")
    assert (found["float_top1"], found["integer_top1"]) == (78.76, 78.5)
    assert found["rows_percent"] == "FIXED8 33 FIXED4 67"
    with pytest.raises(
        UserError, match=r"must have the row other-row; measure it: python -m terrazzo.results"
    ):
        performance.accuracy("other-row")


def test_every_row_has_a_measured_accuracy_of_its_mixture():
    """The accuracy's row has the same schemes with no larger a part of Fixed-8, on activations of as many bits."""
    for row in performance.ROWS.values():
        known = results.ROWS[row.accuracy]
        parts = [mix[Scheme.FIXED8] / sum(mix.values()) for mix in (known.mixture, row.mixture)]
        assert set(known.mixture) == set(row.mixture) and parts[0] <= parts[1]
        bits = known.bits if isinstance(known.bits, int) else known.bits["other"]
        assert row.activations.split()[0] == f"A{bits}"
        assert row.accelerator.drain % row.rows_apart == 0
        assert performance.accuracy(row.accuracy)["integer_top1"] > 50


def test_rows_of_a_mixture_are_shown_by_kind(monkeypatch):
    row = dataclasses.replace(performance.ROWS["deit-s-mixed"], network=lambda: deit(96, 1, 1, image=64))
    monkeypatch.setitem(performance.ROWS, "deit-s-mixed", row)
    found = performance.measure(results_table.Job(row="deit-s-mixed", data=None, files=Path()))
    kinds, lanes = found["utilization_by_kind"], row.accelerator.lanes
    mean = (kinds["fixed8"] * lanes.fixed8 + kinds["fixed4"] * lanes.fixed4) / lanes.total
    assert mean == pytest.approx(found["utilization"], abs=2e-4) and min(kinds.values()) > 0
    line = performance.table({"deit-s-mixed": found}).splitlines()[-1]
    assert "33% Fixed-8, 67% Fixed-4, A8" in line and "32 Fixed-8 + 32 Fixed-4" in line


def test_designs_are_within_the_budget():
    """All but the Fixed-8 design, whose lanes are to be distributed, and that on XC7Z020, which takes more than the budget but
    no more than the chip has."""
    for name, row in performance.ROWS.items():
        need, has = estimate(row.accelerator, row.board), row.board.budget
        if row.board == PYNQ_Z1:
            assert all(
                part <= whole for part, whole in zip(vars(need).values(), vars(has).values(), strict=True)
            )
        elif not name.endswith("-fixed8"):
            assert Budget().holds(need, row.board), name


def test_the_memory_is_that_of_the_issue():
    """At most four ports of 128 bits, at least 60 cycles of latency, at least 5 % lost to refresh."""
    memory = ZCU102.interface.memory
    assert memory.latency >= 60 and memory.refresh_cycles >= 0.05 * memory.refresh_period
    for row in performance.ROWS.values():
        assert row.accelerator.ports <= 4 and row.accelerator.bus_bytes <= 16
