"""A bench around the top: AXI4 memory as `arch.memory` defines it, AXI4-Lite host, protocol checks, traces."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections import deque

import numpy as np
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from terrazzo.arch import isa, program, registers
from terrazzo.arch.accelerator import VERSION, Accelerator, Lanes
from terrazzo.arch.memory import MemoryModel
from terrazzo.hw.axi import prefixes
from terrazzo.hw.ports import (
    EngineSignature,
    IndexRead,
    IndexWrite,
    LoadPort,
    ReadPort,
    RegisterWrite,
    RowScalePort,
    WritePort,
)
from terrazzo.hw.top import TRACED, Top

__all__ = [
    "BASES",
    "LIMIT",
    "PROGRAM",
    "STRANGER_CYCLES",
    "Bench",
    "Run",
    "accelerator",
    "stranger_matrix",
    "stranger_vector",
]

BASES = {"WEIGHTS": 0x1000, "INPUT": 0x3000, "OUTPUT": 0x5000, "SCRATCH": 0x7000}
LIMIT = 0x2000
PROGRAM = 0x9000
STRANGER_CYCLES = 3
"""What an instruction takes in place of the matrix and vector engines."""
CHANNELS = {
    "ar": ("arvalid", "arready", ("araddr", "arlen", "arsize", "arburst")),
    "aw": ("awvalid", "awready", ("awaddr", "awlen", "awsize", "awburst")),
    "w": ("wvalid", "wready", ("wdata", "wstrb", "wlast")),
}


def accelerator(**changes) -> Accelerator:
    """A small machine."""
    values = dict(
        lanes=Lanes(fixed8=4, fixed4=2), columns=4, depth=8, drain=2, vector=2, scratchpad_regions=2, scratchpad_rows=32,
        weight_rows=64, param_rows=16, norm_rows=16, operand_chunks=8, row_scales=8, index_rows=64, table_pages=1, instructions=64,
        bus_bytes=8, burst_beats=8,
    )  # fmt: skip
    return Accelerator(**values | changes)


class _Stranger(wiring.Component):
    """In place of an engine: an instruction takes STRANGER_CYCLES and does nothing; loads are accepted."""

    def __init__(self, opcode, members):
        super().__init__({"control": Out(EngineSignature(opcode)), **members})

    def elaborate(self, platform):
        m = Module()
        control, left = self.control, Signal(range(STRANGER_CYCLES + 1))
        m.d.comb += [control.i.ready.eq(left == 0), control.busy.eq(left != 0), control.done.eq(left == 1)]
        m.d.comb += self.load.ready.eq(1)
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.Elif(control.i.valid):
            i = control.i.payload
            m.d.sync += [
                left.eq(STRANGER_CYCLES),
                control.done_signal.eq(i.signal),
                control.done_tag.eq(i.tag),
            ]
        return m


def stranger_matrix(a):
    ports = {"residual": Out(ReadPort(a)), "fetch": Out(ReadPort(a)), "write": Out(WritePort(a))}
    ports |= {"index_read": Out(IndexRead())}
    return _Stranger(isa.Opcode.MATRIX, {**ports, "load": In(LoadPort(a)), "row_scales": In(RowScalePort(a))})


def stranger_vector(a):
    ports = {"read": Out(ReadPort(a)), "write": Out(WritePort(a)), "load": In(LoadPort(a))}
    ports |= {
        "register_write": Out(RegisterWrite()),
        "index_read": Out(IndexRead()),
        "index_write": Out(IndexWrite()),
        "compacting": Out(1),
    }
    return _Stranger(isa.Opcode.VECTOR, {**ports, "row_scales": Out(RowScalePort(a))})


@dataclasses.dataclass
class Run:
    """One traced run: cycles from its first to its last, and (start, done) of each engine's instructions."""

    cycles: int
    starts: dict[str, list[int]]
    dones: dict[str, list[int]]


class Bench:
    """A top, or another component with the ports of the AXI4 masters, in simulation. `memory` is the DRAM as the engines
    see it, whatever the ports; bursts at `read_errors` and `write_errors` (addresses on the bus) answer SLVERR."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: MemoryModel | None = None,
        *,
        host_seed: int | None = None,
        top: wiring.Component | None = None,
    ):
        self.accelerator, self.model = accelerator, model or MemoryModel(latency=5)
        self.top = top or Top(accelerator)
        self.memory = np.zeros(1 << 16, np.uint8)
        self.read_errors: set[int] = set()
        self.write_errors: set[int] = set()
        self.written: set[int] = set()
        self.bursts: list[tuple[str, int, int]] = []
        self.runs: list[Run] = []
        self.reset = Signal()
        self.silent = False
        """True: the memory answers nothing any more."""
        self._origin = 0
        self._random = random.Random(self.model.seed)
        self._host_random = None if host_seed is None else random.Random(host_seed)

    def simulate(self, host, *others, deadline: int = 5000) -> None:
        """Run the testbench `host(ctx)` to its end, `others` beside it; AssertionError after `deadline` cycles."""
        m = Module()
        m.submodules.top = ResetInserter(self.reset)(self.top)
        simulator = Simulator(m)
        simulator.add_clock(1e-6)
        for number, prefix in enumerate(prefixes(self.accelerator)):
            simulator.add_process(functools.partial(self._memory, number, prefix))
        if isinstance(self.top, Top):
            simulator.add_process(self._trace)
        finished = []

        async def testbench(ctx):
            await host(ctx)
            finished.append(True)

        async def watchdog(ctx):
            for _ in range(deadline):
                await ctx.tick()
            raise AssertionError("the host must come to its end")

        simulator.add_testbench(testbench)
        for process in (watchdog, *others):
            simulator.add_testbench(process, background=True)
        while not finished:
            simulator.advance()

    async def write(self, ctx, name: str, value: int, mask: int = 15) -> None:
        """Write a register; address and data come in random order when the host has a seed."""
        t = self.top
        delays = {"aw": self._host_delay(), "w": self._host_delay()}
        ctx.set(t.s_axil_awaddr, registers.address(name))
        ctx.set(t.s_axil_wdata, value)
        ctx.set(t.s_axil_wstrb, mask)
        cycle = 0
        while delays:
            for channel in delays:
                ctx.set(getattr(t, f"s_axil_{channel}valid"), cycle >= delays[channel])
            ready = {c: ctx.get(getattr(t, f"s_axil_{c}ready")) and cycle >= delays[c] for c in delays}
            await ctx.tick()
            cycle += 1
            for channel, taken in ready.items():
                if taken:
                    ctx.set(getattr(t, f"s_axil_{channel}valid"), 0)
                    del delays[channel]
        for _ in range(self._host_delay()):
            await ctx.tick()
        ctx.set(t.s_axil_bready, 1)
        while not ctx.get(t.s_axil_bvalid):
            await ctx.tick()
        assert ctx.get(t.s_axil_bresp) == 0
        await ctx.tick()
        ctx.set(t.s_axil_bready, 0)

    async def read(self, ctx, name: str) -> int:
        """Read a register."""
        t = self.top
        ctx.set(t.s_axil_araddr, registers.address(name))
        ctx.set(t.s_axil_arvalid, 1)
        while not ctx.get(t.s_axil_arready):
            await ctx.tick()
        await ctx.tick()
        ctx.set(t.s_axil_arvalid, 0)
        for _ in range(self._host_delay()):
            await ctx.tick()
        ctx.set(t.s_axil_rready, 1)
        while not ctx.get(t.s_axil_rvalid):
            await ctx.tick()
        value = ctx.get(t.s_axil_rdata)
        await ctx.tick()
        ctx.set(t.s_axil_rready, 0)
        return value

    async def settle(self, ctx) -> int:
        """Wait until the machine is not busy; returns STATUS."""
        while (status := await self.read(ctx, "STATUS")) & registers.Status.BUSY:
            pass
        return status

    async def setup(self, ctx, instructions: list[isa.Instruction], *, address: int = PROGRAM) -> None:
        """Regions, and the program loaded from `address`."""
        self.put_program(instructions, address=address)
        await self.set_regions(ctx)
        await self.load(ctx, address)

    async def set_regions(self, ctx) -> None:
        """Bases and limits."""
        for region, base in BASES.items():
            await self.write(ctx, f"{region}_BASE", base)
            await self.write(ctx, f"{region}_LIMIT", LIMIT)

    async def load(self, ctx, address: int = PROGRAM) -> None:
        """Let the machine load what is at `address`."""
        await self.write(ctx, "PROGRAM", address)
        await self.command(ctx, registers.Control.LOAD)
        await self.settle(ctx)

    def put_program(
        self, instructions: list[isa.Instruction], *, address: int = PROGRAM, **changes: int
    ) -> None:
        """Header and instructions to memory; `changes` replace header words."""
        words = np.array([isa.encode(i) for i in instructions], dtype="<u4").reshape(
            -1, isa.INSTRUCTION_WORDS
        )
        header = {
            "magic": program.MAGIC, "version": VERSION, "low": self.accelerator.hash & 0xFFFF_FFFF,
            "high": self.accelerator.hash >> 32, "count": len(words), "checksum": program.checksum(words),
        }  # fmt: skip
        image = np.zeros((len(words) + 1, isa.INSTRUCTION_WORDS), "<u4")
        image[0, :6] = list((header | changes).values())
        image[1:] = words
        for i, byte in enumerate(image.view(np.uint8).ravel()):
            self.memory[self._seen(address + i)] = byte

    async def command(self, ctx, bits: registers.Control) -> None:
        """Write CONTROL."""
        await self.write(ctx, "CONTROL", int(bits))

    async def error(self, ctx) -> tuple[registers.Cause, int]:
        """Wait for the end of a failed run; its cause and information."""
        status = await self.settle(ctx)
        assert status & registers.Status.ERROR
        assert status & registers.Status.INTERRUPT
        return registers.Cause(await self.read(ctx, "CAUSE")), await self.read(ctx, "CAUSE_INFO")

    def _seen(self, address: int) -> int:
        """The byte of `memory` that lies at `address` of the bus: there, `burst_beats` beats of a port follow each other,
        here a beat of each port."""
        size, burst, ports = self.accelerator.bus_bytes, self.accelerator.burst_beats, self.accelerator.ports
        beat, byte = divmod(address, size)
        stripe, line = divmod(beat, burst)
        block, port = divmod(stripe, ports)
        return ((block * burst + line) * ports + port) * size + byte

    def _host_delay(self) -> int:
        return self._host_random.randrange(4) if self._host_random else 0

    def _stalled(self) -> bool:
        return self.model.stall > 0 and self._random.random() < self.model.stall

    def _refreshing(self, cycle: int) -> bool:
        period = self.model.refresh_period
        return (cycle - self._origin) % period >= period - self.model.refresh_cycles

    async def _trace(self, ctx):
        t, names = self.top, TRACED
        signals = [t.trace_run_start, t.trace_run_end]
        signals += [getattr(t, f"trace_{name}_{what}") for what in ("start", "done") for name in names]
        cycle, run, begin = 0, None, 0
        async for _, _, first, last, *events in ctx.tick().sample(*signals):
            if first:
                self._origin = cycle
                run, begin = Run(0, {n: [] for n in names}, {n: [] for n in names}), cycle
            if run is not None:
                for i, name in enumerate(names):
                    if events[i]:
                        run.starts[name].append(cycle - begin)
                    if events[len(names) + i]:
                        run.dones[name].append(cycle - begin)
                if last:
                    run.cycles = cycle - begin
                    self.runs.append(run)
                    run = None
            cycle += 1

    async def _memory(self, number, prefix, ctx):
        names = [name for valid, ready, payload in CHANNELS.values() for name in (valid, ready, *payload)]
        names += ["rvalid", "rready", "bvalid", "bready"]
        port = {name: getattr(self.top, f"{prefix}_{name}") for name in names}
        driven = functools.partial(getattr, self.top)
        model, size, before = self.model, self.accelerator.bus_bytes, {}
        reads, writes, responses = deque(), deque(), deque()
        early = deque()
        last_presented = last_accepted = last_w = last_b = -(1 << 30)
        read_valid = response_valid = False
        cycle = 0
        for ready in ("arready", "awready", "wready"):
            ctx.set(driven(f"{prefix}_{ready}"), 1)
        async for _, _, reset, *values in ctx.tick().sample(self.reset, *port.values()):
            now = dict(zip(names, values, strict=True))
            if reset:
                for queue in (reads, writes, responses, early):
                    queue.clear()
                read_valid = response_valid = False
                before = {}
            else:
                self._check(before, now)
                before = now
                if now["arvalid"] and now["arready"]:
                    self._record("ar", now, number)
                    error = 2 * (now["araddr"] in self.read_errors)
                    for beat in range(now["arlen"] + 1):
                        address = now["araddr"] + beat * size
                        reads.append((cycle + model.latency, address, error, beat == now["arlen"]))
                if now["rvalid"] and now["rready"]:
                    last_accepted, read_valid = cycle, False
                if now["awvalid"] and now["awready"]:
                    self._record("aw", now, number)
                    writes.append([now["awaddr"], now["awaddr"], now["awlen"] + 1])
                if now["wvalid"] and now["wready"]:
                    last_w = cycle
                    early.append((now["wdata"], now["wstrb"], now["wlast"]))
                while early and writes:
                    self._write(writes, responses, cycle + model.latency, *early.popleft())
                if now["bvalid"] and now["bready"]:
                    last_b, response_valid = cycle, False

            cycle += 1
            refreshing = self._refreshing(cycle)
            for channel, allowed in (
                ("ar", True),
                ("aw", True),
                ("w", cycle >= last_w + model.interval and not refreshing),
            ):
                ready = allowed and not self._stalled() and not self.silent
                ctx.set(driven(f"{prefix}_{channel}ready"), ready)
            if not read_valid and reads and not self._stalled() and not self.silent:
                eligible, address, error, last = reads[0]
                if (
                    cycle >= max(eligible, last_presented + model.interval, last_accepted + 1)
                    and not refreshing
                ):
                    reads.popleft()
                    read_valid, last_presented = True, cycle
                    first = self._seen(address)
                    data = int.from_bytes(self.memory[first : first + size].tobytes(), "little")
                    ctx.set(driven(f"{prefix}_rdata"), data if not error else 0)
                    ctx.set(driven(f"{prefix}_rresp"), error)
                    ctx.set(driven(f"{prefix}_rlast"), last)
            ctx.set(driven(f"{prefix}_rvalid"), read_valid)
            if not response_valid and responses and not self._stalled() and not self.silent:
                ready_at, error = responses[0]
                if cycle >= max(ready_at, last_b + 1) and not refreshing:
                    responses.popleft()
                    response_valid = True
                    ctx.set(driven(f"{prefix}_bresp"), error)
            ctx.set(driven(f"{prefix}_bvalid"), response_valid)

    def _record(self, channel: str, now: dict, number: int) -> None:
        address, length, size = now[f"{channel}addr"], now[f"{channel}len"] + 1, self.accelerator.bus_bytes
        assert now[f"{channel}size"] == size.bit_length() - 1
        assert now[f"{channel}burst"] == 1
        assert address % size == 0
        assert length <= self.accelerator.burst_beats
        stripe = self.accelerator.burst_beats * size
        assert address // stripe == (address + length * size - 1) // stripe or address >= PROGRAM
        if channel == "aw" or number:
            assert address // stripe % self.accelerator.ports == number
        assert address // 4096 == (address + length * size - 1) // 4096
        self.bursts.append((channel, address, length))

    def _check(self, before: dict, now: dict) -> None:
        """What is valid stays, unchanged, until it is accepted."""
        for valid, ready, payload in CHANNELS.values():
            if before and before[valid] and not before[ready]:
                assert now[valid], valid
                assert all(now[name] == before[name] for name in payload), valid

    def _write(self, writes, responses, ready_at: int, data: int, strobes: int, last: int) -> None:
        burst = writes[0]
        address = burst[1]
        for i in range(self.accelerator.bus_bytes):
            if strobes >> i & 1:
                self.memory[self._seen(address + i)] = data >> (8 * i) & 255
                self.written.add(self._seen(address + i))
        burst[1] += self.accelerator.bus_bytes
        burst[2] -= 1
        assert last == (burst[2] == 0)
        if last:
            writes.popleft()
            responses.append((ready_at, 2 * (burst[0] in self.write_errors)))
