"""Load engine alone: the rows that it writes to every memory, with random stalls on both sides."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring

from terrazzo.arch import isa
from terrazzo.arch.isa import LoadTarget, Region
from terrazzo.arch.memory import MemoryModel
from terrazzo.hw import load
from terrazzo.hw.axi import WriteChannel, connect_master, master_ports, prefixes
from terrazzo.hw.lines import BUFFER_LINES
from terrazzo.hw.ports import load_bytes

from .top_bench import Bench, accelerator


class _Shell(wiring.Component):
    """A load engine with the ports of the masters."""

    def __init__(self, machine):
        self.machine, self.engine = machine, load.Engine(machine)
        ports = [master_ports(machine, prefix) for prefix in prefixes(machine)]
        super().__init__(dict(itertools.chain.from_iterable(port.items() for port in ports)))

    def elaborate(self, platform):
        m = Module()
        m.submodules.engine = self.engine
        for prefix, read in zip(prefixes(self.machine), self.engine.axi, strict=True):
            connect_master(m, self, self.machine, prefix, read, WriteChannel(self.machine).create())
        return m


@pytest.mark.parametrize(
    ("bus_bytes", "ports"), ((4, 1), (4, 2), (8, 4), (16, 1), (32, 2), (128, 1), (128, 4))
)
@pytest.mark.parametrize("stall", (0.0, 0.5))
def test_rows(bus_bytes, ports, stall):
    """Rows much wider, little wider, as wide and narrower than a line."""
    machine = accelerator(bus_bytes=bus_bytes, burst_beats=8, ports=ports)
    shell, rng = _Shell(machine), random.Random(bus_bytes)
    b = Bench(machine, MemoryModel(latency=7, stall=stall, seed=5), top=shell)
    b.memory[:] = np.random.default_rng(1).integers(0, 256, len(b.memory))
    engine, jobs = shell.engine, []
    for tag in range(20):
        target, rows = rng.choice(list(LoadTarget)), rng.choice((1, 2, 7))
        jobs.append(
            (
                tag,
                target,
                rng.randrange(16) * machine.line_bytes,
                rng.randrange(1000),
                rows,
                rng.randrange(1 << 16),
            )
        )
    expected, signals = [], []
    for tag, target, offset, row, rows, signal in jobs:
        size = load_bytes(machine, target)
        for r in range(rows):
            address = 0x1000 + offset + r * machine.pitch(size)
            expected.append((target, row + r, b.memory[address : address + size].tobytes()))
        signals.append((tag, signal))
    seen, done = [], []

    async def sink(ctx):
        while True:
            ctx.set(engine.bus.ready, rng.random() >= stall)
            if ctx.get(engine.bus.valid & engine.bus.ready):
                target = LoadTarget(ctx.get(engine.bus.target))
                data = ctx.get(engine.bus.data).to_bytes(len(engine.bus.data) // 8, "little")
                seen.append((target, ctx.get(engine.bus.row), data[: load_bytes(machine, target)]))
            if ctx.get(engine.control.done):
                assert seen[-1][:2] == expected[len(seen) - 1][:2]
                done.append((ctx.get(engine.control.done_tag), ctx.get(engine.control.done_signal)))
            await ctx.tick()

    async def host(ctx):
        ctx.set(engine.regions[Region.WEIGHTS].base, 0x1000)
        ctx.set(engine.regions[Region.WEIGHTS].limit, 0x4000)
        i = engine.control.i
        for tag, target, offset, row, rows, signal in jobs:
            ctx.set(i.valid, 1)
            fields = dict(tag=tag, target=int(target), offset=offset, row=row, rows=rows, signal=signal)
            for name, value in fields.items():
                ctx.set(getattr(i.payload, name), value)
            while not ctx.get(i.ready):
                await ctx.tick()
            await ctx.tick()
            ctx.set(i.valid, 0)
            for _ in range(rng.randrange(3)):
                await ctx.tick()
        while len(done) < len(jobs):
            await ctx.tick()
        assert not ctx.get(engine.control.busy)
        assert ctx.get(engine.quiet)

    b.simulate(host, sink, deadline=20000)
    assert seen == expected
    assert done == signals
    assert isa.LoadTarget(seen[0][0]) == jobs[0][1]


def test_full_buffer():
    """While the memory takes no row, no more beats are requested than the buffer holds; none is lost."""
    machine = accelerator(bus_bytes=4, burst_beats=8)
    shell, rows, closed = _Shell(machine), 100, 1000
    b = Bench(machine, MemoryModel(latency=7), top=shell)
    b.memory[:] = np.random.default_rng(2).integers(0, 256, len(b.memory))
    engine, size = shell.engine, load_bytes(machine, LoadTarget.SCRATCHPAD)
    assert rows * machine.beats(size) > BUFFER_LINES + 200 and closed > BUFFER_LINES + 200
    beats, seen = [], []

    async def sink(ctx):
        for cycle in itertools.count():
            beats.append(ctx.get(engine.axi[0].rvalid))
            ctx.set(engine.bus.ready, cycle >= closed)
            if ctx.get(engine.bus.valid & engine.bus.ready):
                seen.append(ctx.get(engine.bus.data).to_bytes(len(engine.bus.data) // 8, "little")[:size])
            await ctx.tick()

    async def host(ctx):
        ctx.set(engine.regions[Region.WEIGHTS].base, 0x1000)
        ctx.set(engine.regions[Region.WEIGHTS].limit, 0x2000)
        ctx.set(engine.control.i.payload.rows, rows)
        ctx.set(engine.control.i.valid, 1)
        while not ctx.get(engine.control.i.ready):
            await ctx.tick()
        await ctx.tick()
        ctx.set(engine.control.i.valid, 0)
        while not ctx.get(engine.control.done):
            await ctx.tick()

    b.simulate(host, sink, deadline=5000)
    held = machine.beats(size) + 1  # a row and a beat have left the buffer
    assert BUFFER_LINES - machine.burst_beats < sum(beats[:closed]) <= BUFFER_LINES + held
    assert b"".join(seen) == b.memory[0x1000 : 0x1000 + rows * size].tobytes()
