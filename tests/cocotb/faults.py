"""cocotb tests of the generated top: cocotbext-axi is memory and host. Started by test_cocotb.py."""

import itertools
import os
import random
from pathlib import Path

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, with_timeout
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiSlave, MemoryRegion

from terrazzo.arch.isa import INSTRUCTION_WORDS
from terrazzo.arch.program import Program, checksum
from terrazzo.arch.registers import Cause, Control, Status, address
from terrazzo.hw.axi import prefixes
from terrazzo.hw.dram import AddressMap, footprint, image, read_output

JOB = Path(os.environ["TERRAZZO_JOB"])
PROGRAM = Program.load(JOB / "program")
CODES, EXPECTED = (np.load(JOB / f"{name}.npy") for name in ("codes", "expected"))
PLACES = AddressMap.of(PROGRAM, len(CODES))
MACHINE = PROGRAM.accelerator
STRIPE = MACHINE.burst_beats * MACHINE.bus_bytes
LAST = (MACHINE.ports - 1) * STRIPE
"""Where the last port finds its part of a buffer."""
LAST_WRITTEN = (min(MACHINE.scratchpad_row_bytes, MACHINE.line_bytes) // MACHINE.bus_bytes - 1) * STRIPE
"""The same of the last port that has bytes of a row."""
HEADER_WORDS = INSTRUCTION_WORDS
PATIENCE_US = 400
"""Of every wait: 40,000 cycles."""


class Dram(MemoryRegion):
    """Memory that refuses some addresses and remembers writes outside the program's buffers."""

    def __init__(self):
        super().__init__(PLACES.size)
        self.mem[:] = image(PROGRAM, CODES, PLACES).tobytes()
        self.refused = range(0)
        self.strays = []
        scratch, output = (footprint(MACHINE, size) for size in (PROGRAM.scratch_bytes, PLACES.output_bytes))
        self.writable = [range(PLACES.scratch, PLACES.scratch + scratch)]
        self.writable += [range(start, start + output) for start in PLACES.outputs]

    async def _read(self, address, length, **_):
        if address in self.refused:
            raise OSError("refused")
        return self.mem[address : address + length]

    async def _write(self, address, data, **_):
        if not any(address in r and address + len(data) - 1 in r for r in self.writable):
            self.strays.append(address)
        if address in self.refused:
            raise OSError("refused")
        self.mem[address : address + len(data)] = data

    def words(self, start, count):
        return np.frombuffer(self.mem[start : start + 4 * count], dtype="<u4").copy()

    def put(self, start, words):
        self.mem[start : start + 4 * len(words)] = np.asarray(words, dtype="<u4").tobytes()


class Bench:
    """The top in its surroundings."""

    def __init__(self, dut):
        self.dut = dut
        self.dram = Dram()
        self.host = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axil"), dut.clk, dut.rst)
        self.slaves = [
            AxiSlave(AxiBus.from_prefix(dut, prefix), dut.clk, dut.rst, target=self.dram)
            for prefix in prefixes(MACHINE)
        ]

    async def start(self):
        Clock(self.dut.clk, 10, unit="ns", impl="gpi").start()
        await self.reset()

    async def reset(self):
        self.dut.rst.value = 1
        await ClockCycles(self.dut.clk, 3)
        self.dut.rst.value = 0
        await ClockCycles(self.dut.clk, 2)

    def stall(self, seed, probability):
        """Random pauses on all channels."""
        channels = []
        for side in (*self.slaves, self.host):
            channels += [getattr(side.read_if, f"{name}_channel") for name in ("ar", "r")]
            channels += [getattr(side.write_if, f"{name}_channel") for name in ("aw", "w", "b")]
        for i, channel in enumerate(channels):
            generator = random.Random(f"{seed} {i}")
            channel.set_pause_generator(generator.random() < probability for _ in itertools.count())

    async def write(self, name, value):
        await with_timeout(self.host.write_dword(address(name), int(value)), PATIENCE_US, "us")

    async def read(self, name):
        return await with_timeout(self.host.read_dword(address(name)), PATIENCE_US, "us")

    async def wait(self, bits):
        """Poll STATUS until one of `bits` is 1."""
        for _ in range(2000):
            status = Status(await self.read("STATUS"))
            if status & bits:
                return status
            await ClockCycles(self.dut.clk, 10)
        raise AssertionError(f"hang: none of {bits!r} in {status!r}")

    async def idle(self):
        """Poll STATUS until BUSY is 0."""
        for _ in range(2000):
            if not await self.read("STATUS") & Status.BUSY:
                return
            await ClockCycles(self.dut.clk, 10)
        raise AssertionError("hang: still busy")

    async def configure(self):
        settings = {
            "IRQ_ENABLE": 1,
            "PROGRAM": PLACES.program,
            "WEIGHTS_BASE": PLACES.weights,
            "WEIGHTS_LIMIT": len(PROGRAM.weights),
            "SCRATCH_BASE": PLACES.scratch,
            "SCRATCH_LIMIT": PROGRAM.scratch_bytes,
            "INPUT_LIMIT": PLACES.input_bytes,
            "OUTPUT_LIMIT": PLACES.output_bytes,
        }
        for name, value in settings.items():
            await self.write(name, value)

    async def load(self):
        await self.write("CONTROL", Control.LOAD)
        return await self.wait(Status.LOADED | Status.ERROR)

    async def begin(self, entry, frame=0):
        await self.write("INPUT_BASE", PLACES.inputs[frame])
        await self.write("OUTPUT_BASE", PLACES.outputs[frame])
        await self.write("ENTRY", entry)
        await self.write("CONTROL", Control.START)

    async def run(self, entry, frame=0):
        await self.begin(entry, frame)
        status = await self.wait(Status.INTERRUPT)
        assert self.dut.irq.value == 1
        await self.write("CONTROL", Control.ACKNOWLEDGE)
        return status

    async def setup(self):
        await self.configure()
        assert not await self.load() & Status.ERROR
        assert not await self.run(PROGRAM.setup_entry) & Status.ERROR

    def check(self, frame):
        found = read_output(PROGRAM, np.frombuffer(self.dram.mem[:], np.uint8), PLACES.outputs[frame], PLACES)
        assert (found == EXPECTED[frame]).all(), f"frame {frame} is wrong"
        assert not self.dram.strays, f"stray writes at {self.dram.strays}"

    async def good_frame(self, frame=0):
        assert not await self.run(PROGRAM.frame_entry, frame) & Status.ERROR
        self.check(frame)

    async def expect(self, cause, info=None):
        """The machine has stopped with `cause`, wrote nothing wrong, and CLEAR makes it usable."""
        status = await self.wait(Status.ERROR)
        assert status & Status.INTERRUPT
        assert Cause(await self.read("CAUSE")) is cause
        if info is not None:
            assert await self.read("CAUSE_INFO") == info
        await self.idle()
        before = bytes(self.dram.mem[:])
        await ClockCycles(self.dut.clk, 200)
        assert bytes(self.dram.mem[:]) == before, "writes after the stop"
        assert not self.dram.strays
        await self.write("CONTROL", Control.CLEAR | Control.ACKNOWLEDGE)
        await self.idle()
        status = Status(await self.read("STATUS"))
        assert not status & (Status.ERROR | Status.INTERRUPT) and await self.read("CAUSE") == 0
        assert self.dut.irq.value == 0


async def bench(dut, stall=None):
    result = Bench(dut)
    if stall is not None:
        result.stall(*stall)
    await result.start()
    return result


async def good_again(b):
    """After an error: load, set up and run as if nothing had been."""
    b.dram.refused = range(0)
    b.dram.mem[:] = image(PROGRAM, CODES, PLACES).tobytes()
    await b.setup()
    await b.good_frame()


@cocotb.test()
async def random_stalls(dut):
    b = await bench(dut, (1, 0.4))
    await b.setup()
    for frame in range(len(CODES)):
        await b.good_frame(frame)


@cocotb.test()
async def queued_starts(dut):
    """Two frames wait behind a running one; one more start is an error."""
    b = await bench(dut)
    await b.setup()
    runs = await b.read("RUNS")
    for frame in (0, 1, 0):
        await b.begin(PROGRAM.frame_entry, frame)
    assert await b.read("STATUS") & Status.QUEUED
    await b.idle()
    assert await b.read("RUNS") == runs + 3 and await b.read("CAUSE") == 0
    b.check(0)
    b.check(1)
    for _ in range(6):
        await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.QUEUE_FULL, 0)
    await good_again(b)


@cocotb.test()
async def load_while_busy(dut):
    b = await bench(dut)
    await b.setup()
    await b.begin(PROGRAM.frame_entry)
    await b.write("CONTROL", Control.LOAD)
    await b.expect(Cause.QUEUE_FULL, 0)
    await good_again(b)


@cocotb.test()
async def read_error(dut):
    b = await bench(dut, (2, 0.2))
    await b.setup()
    b.dram.refused = range(PLACES.inputs[0] + LAST, PLACES.inputs[0] + LAST + STRIPE)
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.READ_ERROR, PLACES.inputs[0] + LAST)
    await good_again(b)


@cocotb.test()
async def read_error_while_loading(dut):
    b = await bench(dut)
    b.dram.refused = range(PLACES.program, PLACES.program + 4096)
    await b.configure()
    assert await b.load() & Status.ERROR
    await b.expect(Cause.READ_ERROR, PLACES.program)
    await good_again(b)


@cocotb.test()
async def write_error(dut):
    b = await bench(dut, (3, 0.2))
    await b.setup()
    refused = PLACES.outputs[0] + LAST_WRITTEN
    b.dram.refused = range(refused, refused + STRIPE)
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.WRITE_ERROR, refused)
    await good_again(b)


@cocotb.test()
async def reset_in_mid_run(dut):
    b = await bench(dut)
    await b.setup()
    for cycles in (20, 97, 300):
        await b.begin(PROGRAM.frame_entry)
        await ClockCycles(dut.clk, cycles)
        await b.reset()
        assert await b.read("STATUS") & (Status.BUSY | Status.ERROR | Status.LOADED) == 0
        assert not b.dram.strays
        await good_again(b)


@cocotb.test()
async def illegal_instruction(dut):
    """The third instruction of the frame becomes opcode 0; the checksum is that of the damaged program."""
    b = await bench(dut)
    index = PROGRAM.frame_entry + 2
    instructions = PROGRAM.instructions.copy()
    instructions[index] = 0
    b.dram.put(PLACES.program + 4 * HEADER_WORDS * (1 + index), instructions[index])
    b.dram.put(PLACES.program + 4 * 5, [checksum(instructions)])
    await b.setup()
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.ILLEGAL_INSTRUCTION, index)
    await good_again(b)


@cocotb.test()
async def damaged_headers(dut):
    """Magic, version, hash, size and checksum of the program's header."""
    b = await bench(dut)
    await b.configure()
    cases = [(0, Cause.BAD_PROGRAM), (1, Cause.BAD_PROGRAM), (2, Cause.WRONG_HASH), (3, Cause.WRONG_HASH)]
    for word, cause in [*cases, (5, Cause.BAD_CHECKSUM)]:
        good = b.dram.words(PLACES.program, HEADER_WORDS)
        bad = good.copy()
        bad[word] ^= 0x100
        b.dram.put(PLACES.program, bad)
        assert not await b.load() & Status.LOADED
        await b.expect(cause)
        b.dram.put(PLACES.program, good)
    bad = good.copy()
    bad[4] = PROGRAM.accelerator.instructions + 1
    b.dram.put(PLACES.program, bad)
    await b.load()
    await b.expect(Cause.BAD_PROGRAM, PROGRAM.accelerator.instructions + 1)
    await good_again(b)


@cocotb.test()
async def start_without_program(dut):
    b = await bench(dut)
    await b.configure()
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.NO_PROGRAM, PROGRAM.frame_entry)
    await good_again(b)


@cocotb.test()
async def watchdog(dut):
    b = await bench(dut)
    await b.setup()
    await b.write("WATCHDOG", 100)
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.WATCHDOG)
    await b.write("WATCHDOG", 0)
    await good_again(b)


@cocotb.test()
async def out_of_bounds(dut):
    """A store beyond its region's limit writes nothing there."""
    b = await bench(dut)
    await b.setup()
    limit = PLACES.output_bytes - MACHINE.line_bytes
    await b.write("OUTPUT_LIMIT", limit)
    before = b.dram.writable[1:]
    b.dram.writable[1:] = [range(start, start + limit // MACHINE.ports) for start in PLACES.outputs]
    await b.begin(PROGRAM.frame_entry)
    await b.expect(Cause.OUT_OF_BOUNDS)
    b.dram.writable[1:] = before
    await good_again(b)
