"""The table of frames per second: its rows compile, and its cells are those of the row."""

from pathlib import Path

from terrazzo import performance, results_table
from terrazzo.boards import ZCU102
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
    useful = sum(small.macs(operator) for operator in small.operators)
    assert found["utilization"] == round(useful / (5120 * expected), 4)
    cells = performance.table({"deit-t-fixed8": found}).splitlines()[-1].split(" | ")
    assert {f"{expected:,}", row.published, "64 x 5 x 16"} <= set(cells)


def test_the_memory_is_that_of_the_issue():
    """At most four ports of 128 bits, at least 60 cycles of latency, at least 5 % lost to refresh."""
    memory = ZCU102.interface.memory
    assert memory.latency >= 60 and memory.refresh_cycles >= 0.05 * memory.refresh_period
    for row in performance.ROWS.values():
        assert row.accelerator.ports <= 4 and row.accelerator.bus_bytes <= 16
