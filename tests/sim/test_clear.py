"""CLEAR with the real engines: a run that is cut off anywhere leaves nothing behind that a later run could see."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest

from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.registers import Cause, Control, address
from terrazzo.hw.dram import AddressMap, image
from terrazzo.sim import rtl
from terrazzo.sim.cycle import predict

from .test_cycle import MACHINES, random_program

POLLS = 200


def write(name: str, value: int) -> str:
    return f"write {address(name)} {int(value)}"


@pytest.fixture(scope="module")
def simulator():
    return rtl.RtlSimulator(MACHINES["small"])


@pytest.mark.parametrize("seed", range(8))
def test_run_after_clear(simulator, seed):
    """Watchdogs stop a run in several places; after each CLEAR a whole run takes exactly its predicted time."""
    program, memory = random_program(simulator.accelerator, 100 + seed), MemoryModel(latency=20, interval=2)
    cycles = predict(program, memory).cycles
    cuts = np.random.default_rng(seed).integers(2, cycles, 6).tolist()
    codes = np.zeros((1, 1, 1), np.int8)
    places = AddressMap.of(program, 1)
    script = rtl._script(program, places, memory, 1_000_000, None)
    frame = script.index("deny")
    head, tail = script[:frame], script[frame : script.index("note 1")]
    body = []
    for cut in cuts:
        body += [write("WATCHDOG", cut), write("ENTRY", 0), write("CONTROL", Control.START), "irq 100000"]
        body += [f"expect {address('CAUSE')} 255 {int(Cause.WATCHDOG)}", write("CONTROL", Control.CLEAR)]
        body += [write("CONTROL", Control.ACKNOWLEDGE), *[f"read {address('STATUS')}"] * POLLS]
        body += [f"expect {address('CAUSE')} 255 0", write("WATCHDOG", 0), *tail]
    with tempfile.TemporaryDirectory() as name:
        job = Path(name)
        image(program, codes, places).tofile(job / "dram.bin")
        (job / "script").write_text("\n".join([*head, *tail, *body, "end"]) + "\n")
        lines = simulator._execute(job, None)
    assert not [words for words in lines if words[0] not in ("read", "cycles", "note")]
    measured = [value for place, value in rtl._registers(lines) if place == address("CYCLES")]
    assert measured == [cycles] * (1 + len(cuts))
