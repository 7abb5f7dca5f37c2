"""The RTL harness by itself, on a device whose every transfer is known (copier.v)."""

import os
from pathlib import Path

import numpy as np
import pytest

from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.layout import Layout
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.program import Program
from terrazzo.arch.registers import Cause
from terrazzo.hw.verilator import ToolError
from terrazzo.sim.rtl import RtlError, RtlSimulator, Wave

COPIER = Path(__file__).with_name("copier.v").read_text()
BEATS = 4
READ, WRITTEN = 3, 5
"""Event codes with which the copier reports every beat."""
ACCELERATOR = Accelerator(
    lanes=Lanes(fixed8=4),
    columns=2,
    depth=8,
    drain=2,
    vector=2,
    scratchpad_regions=2,
    scratchpad_rows=64,
    weight_rows=64,
    param_rows=16,
    norm_rows=16,
    operand_chunks=16,
    row_scales=16,
    index_rows=64,
    table_pages=1,
    instructions=16,
    bus_bytes=8,
    burst_beats=4,
)


def program(frame_entry: int = 1) -> Program:
    """A "program" of the copier: 32 bytes in, 32 bytes out."""
    layout = Layout(positions=4, channels=8, wide=False, stride=1)
    return Program(
        name="copy",
        accelerator=ACCELERATOR,
        setup_entry=0,
        frame_entry=frame_entry,
        scratch_bytes=64,
        input=layout,
        output=layout,
        layers=(),
        instructions=np.zeros((1, 32), dtype=np.uint32),
        weights=np.zeros(64, dtype=np.uint8),
    )


@pytest.fixture(scope="module")
def simulator() -> RtlSimulator:
    return RtlSimulator(ACCELERATOR, COPIER)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 127, (3, 4, 8))


def test_outputs_of_many_frames(simulator, codes):
    done = []
    result = simulator.run(program(), codes, progress=done.append)
    assert (result.outputs == codes + 1).all()
    assert done == [1, 2, 3]
    assert (result.cycles == result.cycles[0]).all() and result.setup_cycles == 1
    assert set(result.spans[0]) == set(range(BEATS)) | {7}
    assert [c["CYCLES"] for c in result.counters] == [0, 0, 0], "the copier has no counters"


@pytest.mark.parametrize("latency", [1, 2, 40])
@pytest.mark.parametrize("interval", [1, 3, 50])
def test_memory_timing(simulator, codes, latency, interval):
    """Every transfer happens in the cycle that arch/memory.py states."""
    result = simulator.run(program(), codes[:1], MemoryModel(latency=latency, interval=interval))
    events = result.events[result.events["cycle"] >= result.starts[1]]
    at = {(int(code), int(tag)): int(cycle) for cycle, code, tag in events}
    address_read, address_written, response = at[0, 7], at[6, 7], at[7, 7]
    reads = [at[READ, i] for i in range(BEATS)]
    writes = [at[WRITTEN, i] for i in range(BEATS)]
    assert reads == [address_read + latency + i * interval for i in range(BEATS)]
    assert address_written == reads[-1] + 1
    assert writes == [address_written + i * interval for i in range(BEATS)]
    assert response == writes[-1] + latency
    assert result.cycles[0] == response + 1 - result.starts[1]


@pytest.mark.parametrize(("latency", "interval"), [(1, 1), (5, 2), (23, 1)])
def test_refresh(simulator, codes, latency, interval):
    """Nothing is presented in the last 7 of each 10 cycles since the run's start; all else is as without refresh."""
    memory = MemoryModel(latency=latency, interval=interval, refresh_cycles=7, refresh_period=10)
    result = simulator.run(program(), codes[:1], memory)
    events = result.events[result.events["cycle"] >= result.starts[1]]
    at = {(int(code), int(tag)): int(cycle - result.starts[1]) for cycle, code, tag in events}

    def moved(cycle: int) -> int:
        while cycle % 10 >= 3:
            cycle += 1
        return cycle

    expected = [moved(at[0, 7] + latency)]
    for _ in range(BEATS - 1):
        expected.append(moved(expected[-1] + interval))
    assert [at[READ, i] for i in range(BEATS)] == expected
    expected = [moved(expected[-1] + 1)]
    for _ in range(BEATS - 1):
        expected.append(moved(expected[-1] + interval))
    assert [at[WRITTEN, i] for i in range(BEATS)] == expected
    assert at[7, 7] == moved(expected[-1] + latency)


def test_random_stalls_change_time_only(simulator, codes):
    stalled = [simulator.run(program(), codes, MemoryModel(stall=0.5, seed=seed)) for seed in (1, 1, 2)]
    assert all((result.outputs == codes + 1).all() for result in stalled)
    calm = simulator.run(program(), codes)
    assert (stalled[0].cycles == stalled[1].cycles).all()
    assert (
        stalled[0].cycles.sum() > calm.cycles.sum()
        and stalled[0].cycles.tolist() != stalled[2].cycles.tolist()
    )


def test_hang_is_reported(simulator, codes):
    with pytest.raises(
        RtlError, match=r"^RTL simulation, setup or frame 0: the run must end, but was still busy"
    ):
        simulator.run(program(frame_entry=2), codes, max_cycles=100)


def test_stray_write_is_reported(simulator, codes):
    with pytest.raises(
        RtlError, match=r"^RTL simulation, setup or frame 0: writes must stay inside the OUTPUT and SCRATCH"
    ):
        simulator.run(program(frame_entry=3), codes)


def test_cause_is_reported(simulator, codes):
    with pytest.raises(RtlError, match="stopped with cause ILLEGAL_INSTRUCTION") as error:
        simulator.run(program(frame_entry=4), codes)
    assert error.value.cause is Cause.ILLEGAL_INSTRUCTION


def test_broken_axi_rule_is_reported(codes):
    early = COPIER.replace("m_axi_wlast = written == BEATS - 1", "m_axi_wlast = written == BEATS - 2")
    with pytest.raises(RtlError, match="AXI rule broken on wlast"):
        RtlSimulator(ACCELERATOR, early).run(program(), codes, max_cycles=1000)


def test_waveform(codes, tmp_path):
    simulator = RtlSimulator(ACCELERATOR, COPIER, trace=True)
    whole, window = tmp_path / "whole.fst", tmp_path / "window.fst"
    simulator.run(program(), codes, wave=Wave(path=whole))
    simulator.run(program(), codes, wave=Wave(path=window, first=100, last=110))
    assert whole.read_bytes()[0] == 0 and b"trace_run_start" in whole.read_bytes()
    assert 0 < window.stat().st_size < whole.stat().st_size


def test_models_are_cached(simulator):
    before = simulator.executable.stat().st_mtime_ns
    assert RtlSimulator(ACCELERATOR, COPIER).executable.stat().st_mtime_ns == before
    assert not list(simulator.executable.parent.glob("tmp*"))


@pytest.mark.parametrize(
    ("missing", "message"), [("g++", "^a C.. compiler must be"), ("make", "^make must be")]
)
def test_missing_tool_is_one_clear_error(missing, message, tmp_path, monkeypatch):
    for tool in {"g++", "make", "perl"} - {missing}:
        (tmp_path / tool).symlink_to(
            next(Path(d, tool) for d in os.environ["PATH"].split(":") if Path(d, tool).exists())
        )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ToolError, match=message + " installed.*apt-get install g"):
        RtlSimulator(ACCELERATOR, COPIER + "// not in the cache\n")


def test_broken_verilog_is_a_clear_error():
    with pytest.raises(ToolError, match=r"^Verilog must compile, but verilator says:\n%Error.*top\.v"):
        RtlSimulator(ACCELERATOR, COPIER.replace("localparam BEATS = 4;", "localparam = ;"))
