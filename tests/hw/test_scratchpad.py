"""Scratchpad: arbitration, masks and latency against a naive model."""

from __future__ import annotations

import random

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch.accelerator import Lanes
from terrazzo.hw.scratchpad import READERS, WRITERS, Scratchpad, mask_bytes

from .top_bench import accelerator

LATENCY = 2


@pytest.mark.parametrize("regions, private", ((1, 1), (2, 1), (8, 1), (1, 2), (2, 4)))
@pytest.mark.parametrize("seed", range(2))
def test_against_model(regions, private, seed):
    """Random requests on all ports: who is granted, what is written, and what is read two cycles later."""
    changes = {"lanes": Lanes(fixed8=8 * private), "operand_chunks": 16, "private": private}
    machine = accelerator(scratchpad_regions=regions, scratchpad_rows=16, vector=4, **changes)
    rng, dut = random.Random(seed), Scratchpad(machine)
    rows, row_bytes, group = regions * 16, machine.scratchpad_row_bytes, mask_bytes(machine)
    assert group == 2
    model = np.zeros((rows, row_bytes), np.uint8)
    load = rng.choice((0.3, 0.9))
    refused = 0

    async def bench(ctx):
        nonlocal refused
        due = {}
        for cycle in range(400):
            for name, expected in due.pop(cycle, []):
                data = ctx.get(getattr(dut, name).data).to_bytes(expected.size, "little")
                assert data == expected.tobytes(), (cycle, name)
            requests = {}
            for name in (*READERS, *WRITERS):
                port, valid, row = getattr(dut, name), rng.random() < load, rng.randrange(rows)
                ctx.set(port.valid, valid)
                ctx.set(port.row, row)
                if name in WRITERS:
                    data, groups = (
                        rng.randbytes(row_bytes),
                        [rng.random() < 0.5 for _ in range(row_bytes // group)],
                    )
                    mask = np.repeat(groups, group)
                    ctx.set(port.data, int.from_bytes(data, "little"))
                    ctx.set(port.mask, sum(1 << i for i in np.flatnonzero(mask).tolist()))
                    if valid:
                        requests[name] = (row, np.frombuffer(data, np.uint8), mask)
                elif valid:
                    requests[name] = (row,)
            taken = {kind: set() for kind in (READERS, WRITERS)}
            winners = []
            for kind in (READERS, WRITERS):
                for name in kind:
                    if name in requests:
                        region = requests[name][0] // 16
                        wins = region not in taken[kind]
                        assert ctx.get(getattr(dut, name).ready) == wins, (cycle, name)
                        taken[kind].add(region)
                        winners += [name] if wins else []
                        refused += not wins
            written = {requests[name][0] for name in winners if name in WRITERS}
            for name in winners:
                row = requests[name][0]
                read = [row | i for i in range(private)] if name == "fetch" else [row]
                if name in READERS and not written.intersection(read):
                    due.setdefault(cycle + LATENCY, []).append((name, model[read].copy()))
            for name in winners:
                if name in WRITERS:
                    row, data, mask = requests[name]
                    model[row] = np.where(mask, data, model[row])
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert refused > 20
    assert model.any()
