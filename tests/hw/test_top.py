"""The top with load and store engines: programs, starts, reset and every cause."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, LoadTarget, Opcode, Region
from terrazzo.arch.memory import MemoryModel
from terrazzo.arch.registers import IDENTITY, Cause, Control, Status

from .top_bench import BASES, PROGRAM, STRANGER_CYCLES

WEIGHTS, INPUT, OUTPUT = (BASES[name] for name in ("WEIGHTS", "INPUT", "OUTPUT"))
END = Instruction(Opcode.END)


def load(offset, row, rows, *, region=Region.INPUT, target=LoadTarget.SCRATCHPAD, **values):
    return Instruction(
        Opcode.LOAD, dict(region=region, offset=offset, row=row, rows=rows, target=target, **values)
    )


def store(offset, row, rows, *, region=Region.OUTPUT, **values):
    return Instruction(Opcode.STORE, dict(region=region, offset=offset, row=row, rows=rows, **values))


def pair(producer, consumer):
    return 1 << isa.semaphore(producer, consumer)


LOADED = pair(Engine.LOAD, Engine.STORE)
COPY = [load(0, 3, 9, signal=LOADED), store(0x80, 3, 9, wait=LOADED), END]


def fill(bench, seed=0):
    bench.memory[:] = np.random.default_rng(seed).integers(0, 256, len(bench.memory))


def test_copy(bench):
    b = bench()
    fill(b)

    async def host(ctx):
        assert await b.read(ctx, "IDENTITY") == IDENTITY
        await b.setup(ctx, COPY)
        assert await b.read(ctx, "STATUS") == Status.LOADED
        await b.command(ctx, Control.START)
        assert await b.settle(ctx) == Status.LOADED | Status.INTERRUPT
        assert await b.read(ctx, "RUNS") == 1
        assert await b.read(ctx, "CYCLES") == b.runs[0].cycles

    expected = b.memory.copy()
    expected[OUTPUT + 0x80 : OUTPUT + 0x80 + 288] = expected[INPUT : INPUT + 288]
    b.simulate(host)
    assert (b.memory[:0x9000] == expected[:0x9000]).all()
    assert len(b.written) == 288


@pytest.mark.parametrize("seed", range(6))
def test_random_stalls(bench, seed):
    """Transfers through every bus width with all channels held back at random, after a reset in mid-run."""
    rng = random.Random(seed)
    b = bench(
        MemoryModel(
            latency=rng.choice((1, 9, 40)),
            interval=rng.choice((1, 3)),
            stall=rng.choice((0.1, 0.5)),
            seed=seed,
        ),
        host_seed=seed,
        bus_bytes=(4, 8, 16, 32, 64, 128)[seed],
        burst_beats=rng.choice((1, 4, 16)),
        ports=(1, 2, 4, 2, 2, 1)[seed],
    )
    fill(b, seed)
    row_stride = b.accelerator.pitch(32)
    free = pair(Engine.STORE, Engine.LOAD)
    instructions, expected = [], b.memory.copy()
    for i in range(5):
        rows, row = rng.randrange(1, 12), rng.randrange(50)
        source, target = (rng.randrange(16) * row_stride + i * 0x600 for _ in range(2))
        source, target = source % 0x1800, target % 0x1E00 // 128 * 128
        instructions.append(
            load(source, row, rows, signal=LOADED, wait=free if i else 0, region=Region.WEIGHTS)
        )
        instructions.append(store(target, row, rows, wait=LOADED, signal=free))
        for r in range(rows):
            begin = OUTPUT + target + r * row_stride
            expected[begin : begin + 32] = expected[WEIGHTS + source + r * row_stride :][:32]

    async def host(ctx):
        await b.setup(ctx, [*instructions, END])
        await b.command(ctx, Control.START)
        for _ in range(rng.randrange(20, 200)):
            await ctx.tick()
        ctx.set(b.reset, 1)
        await ctx.tick()
        ctx.set(b.reset, 0)
        assert await b.read(ctx, "STATUS") == 0
        assert await b.read(ctx, "WEIGHTS_LIMIT") == 0
        await b.setup(ctx, [*instructions, END])
        await b.command(ctx, Control.START)
        assert await b.settle(ctx) == Status.LOADED | Status.INTERRUPT

    b.simulate(host, deadline=20000)
    assert (b.memory[:0x9000] == expected[:0x9000]).all()


@pytest.mark.parametrize("ports", (1, 2, 4))
def test_bandwidth(bench, ports):
    """Load and store move a line per cycle, apart from a start that does not depend on the length."""
    cycles = {}
    for rows in (16, 32):
        b = bench(MemoryModel(latency=60), bus_bytes=4, ports=ports)

        async def host(ctx, b=b, rows=rows):
            await b.setup(ctx, [load(0, 0, rows, signal=LOADED), store(0, 0, rows, wait=LOADED), END])
            await b.command(ctx, Control.START)
            await b.settle(ctx)

        b.simulate(host)
        (run,) = b.runs
        cycles[rows] = [run.dones[e][0] - run.starts[e][0] for e in ("load", "store")]
    assert cycles[32] == [c + 16 * 8 // ports for c in cycles[16]]


@pytest.mark.parametrize("ports", (1, 4))
def test_stores_overlap(bench, ports):
    """A store does not wait for the responses of those before it; each is done when its own have come."""
    b = bench(MemoryModel(latency=300), bus_bytes=4, burst_beats=4, ports=ports)
    fill(b)
    instructions = [load(0, 0, 32, signal=LOADED)]
    instructions += [store(256 * i, 8 * i, 8, wait=0 if i else LOADED) for i in range(4)]

    async def host(ctx):
        await b.setup(ctx, [*instructions, END])
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR

    b.simulate(host)
    (run,) = b.runs
    starts, dones = run.starts["store"], run.dones["store"]
    assert starts[3] < dones[0]
    lines = 256 // b.accelerator.line_bytes
    assert all(lines <= after - before <= lines + 5 for before, after in itertools.pairwise(dones))
    assert (b.memory[OUTPUT : OUTPUT + 1024] == b.memory[INPUT : INPUT + 1024]).all()


def test_starts(bench):
    """Two starts wait behind a running one, each with the bases of its time; a third is an error."""
    b = bench()
    fill(b)

    async def host(ctx):
        await b.setup(ctx, COPY)
        await b.write(ctx, "IRQ_ENABLE", 1)
        for i in range(3):
            await b.write(ctx, "INPUT_BASE", INPUT + i * 0x100)
            await b.write(ctx, "OUTPUT_BASE", OUTPUT + i * 0x400)
            await b.command(ctx, Control.START)
        assert await b.read(ctx, "STATUS") & Status.QUEUED
        assert await b.settle(ctx) == Status.LOADED | Status.INTERRUPT
        assert ctx.get(b.top.irq)
        assert await b.read(ctx, "RUNS") == 3
        await b.command(ctx, Control.ACKNOWLEDGE)
        assert not ctx.get(b.top.irq)
        assert await b.read(ctx, "STATUS") == Status.LOADED

        for _ in range(4):
            await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.QUEUE_FULL, 0)
        assert await b.read(ctx, "RUNS") == 3

    expected = b.memory.copy()
    for i in range(3):
        expected[OUTPUT + i * 0x400 + 0x80 :][:288] = expected[INPUT + i * 0x100 :][:288]
    b.simulate(host)
    assert (b.memory[OUTPUT : OUTPUT + 0x1000] == expected[OUTPUT : OUTPUT + 0x1000]).all()
    assert b.runs[0].cycles == b.runs[1].cycles == b.runs[2].cycles


ILLEGAL = {
    "opcode 0": np.zeros(32, np.uint32),
    "opcode 6": np.array([6] + 31 * [0], np.uint32),
    "fetch mode 3": isa.encode(Instruction(Opcode.MATRIX, {"mode": 3})),
    "parameter mode 3": isa.encode(Instruction(Opcode.MATRIX, {"param_mode": 3})),
    "destination 3": isa.encode(Instruction(Opcode.MATRIX, {"destination": 3})),
    "vector op 6": isa.encode(Instruction(Opcode.VECTOR, {"op": 6})),
    "no rows": isa.encode(load(0, 0, 0)),
    "foreign semaphore": isa.encode(load(0, 0, 1, wait=LOADED)),
}


@pytest.mark.parametrize("name", ILLEGAL)
def test_illegal_instruction(bench, name):
    b = bench()

    async def host(ctx):
        b.put_program([store(0, 0, 1), store(0, 0, 1), END])
        words = b.memory[PROGRAM : PROGRAM + 512].view("<u4").reshape(4, 32)
        words[2] = ILLEGAL[name]
        words[0, 5] = np.bitwise_xor.reduce(words[1:], axis=None)
        await b.set_regions(ctx)
        await b.load(ctx)
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.ILLEGAL_INSTRUCTION, 1)

    b.simulate(host)
    assert b.runs == []


BEYOND = {
    "end": (store(0x1FE0, 0, 2), 0x1FE0),
    "offset": (load(0xFFFF_FFE0, 0, 1), 0xFFFF_FFE0),
    "unaligned": (load(4, 0, 1), 4),
    "unaligned store": (store(0x44, 0, 1), 0x44),
    "long": (load(0, 0, 0xFFFF), 0),
}


@pytest.mark.parametrize("name", BEYOND)
def test_out_of_bounds(bench, name):
    b, (instruction, offset) = bench(), BEYOND[name]

    async def host(ctx):
        await b.setup(ctx, [store(0x1FE0, 0, 1), load(0x1FE0, 0, 1), instruction, END])
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.OUT_OF_BOUNDS, offset)

    b.simulate(host)
    assert b.written <= set(range(OUTPUT + 0x1FE0, OUTPUT + 0x2000))


@pytest.mark.parametrize("ports", (1, 2, 4))
@pytest.mark.parametrize("stall", (0.0, 0.4))
@pytest.mark.parametrize("channel", ("read", "write"))
def test_bus_error(bench, channel, stall, ports):
    """The cause names the failing burst (with several ports one of the last), outstanding bursts are completed, and
    CLEAR makes all well again."""
    b = bench(MemoryModel(latency=30, stall=stall, seed=3), burst_beats=4, ports=ports)
    fill(b)
    address = INPUT + 7 * 32 if channel == "read" else OUTPUT + 0x80 + 7 * 32
    (b.read_errors if channel == "read" else b.write_errors).add(address)
    expected = b.memory.copy()
    expected[OUTPUT + 0x80 :][:288] = expected[INPUT:][:288]

    async def host(ctx):
        await b.setup(ctx, COPY)
        await b.command(ctx, Control.START)
        cause = Cause.READ_ERROR if channel == "read" else Cause.WRITE_ERROR
        assert await b.error(ctx) == (cause, address)
        await b.command(ctx, Control.START)
        assert await b.read(ctx, "STATUS") == Status.ERROR | Status.INTERRUPT | Status.LOADED
        assert await b.read(ctx, "RUNS") == 0
        b.read_errors.clear()
        b.write_errors.clear()
        await b.command(ctx, Control.CLEAR | Control.ACKNOWLEDGE)
        assert await b.settle(ctx) == Status.LOADED
        assert await b.read(ctx, "CAUSE") == await b.read(ctx, "CAUSE_INFO") == 0
        await b.command(ctx, Control.START)
        assert await b.settle(ctx) == Status.LOADED | Status.INTERRUPT

    b.simulate(host, deadline=10000)
    assert (b.memory[:0x9000] == expected[:0x9000]).all()
    assert len(b.runs) == 1


@pytest.mark.parametrize("ports", (1, 2))
def test_halted_store(bench, ports):
    """A burst that was begun is finished with all strobes low after an error elsewhere, and nothing follows it."""
    b = bench(MemoryModel(latency=10, interval=12), bus_bytes=4, burst_beats=16, ports=ports)
    b.memory[OUTPUT : OUTPUT + 0x2000] = 7

    async def host(ctx):
        token = pair(Engine.MATRIX, Engine.LOAD)
        wait = [Instruction(Opcode.MATRIX)] * 7 + [Instruction(Opcode.MATRIX, dict(signal=token))]
        await b.setup(ctx, [store(0, 0, 8), *wait, load(0x2000, 0, 1, wait=token), END])
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.OUT_OF_BOUNDS, 0x2000)

    b.simulate(host)
    writes = [burst for burst in b.bursts if burst[0] == "aw"]
    assert len(writes) == ports
    assert 0 < len(b.written) < 64 * ports
    assert (b.memory[OUTPUT + 64 * ports : OUTPUT + 0x2000] == 7).all()


HEADERS = {
    "magic": (dict(magic=0x12345678), Cause.BAD_PROGRAM, 0x12345678),
    "version": (dict(version=99), Cause.BAD_PROGRAM, 99),
    "no instruction": (dict(count=0), Cause.BAD_PROGRAM, 0),
    "too long": (dict(count=65), Cause.BAD_PROGRAM, 65),
    "hash low": (dict(low=0xABCD), Cause.WRONG_HASH, 0xABCD),
    "checksum": (dict(checksum=1), Cause.BAD_CHECKSUM, None),
}


@pytest.mark.parametrize("name", [*HEADERS, "hash high", "header read", "body read"])
@pytest.mark.parametrize("bus_bytes", (4, 128))
def test_program_errors(bench, name, bus_bytes):
    """A program that was not loaded cannot be started; a good one can be loaded after CLEAR."""
    b = bench(MemoryModel(latency=3, stall=0.2), bus_bytes=bus_bytes)
    words = np.array([isa.encode(i) for i in COPY])
    changes, cause, info = HEADERS.get(name, ({}, Cause.READ_ERROR, None))
    if name == "hash high":
        changes, cause, info = dict(high=0), Cause.WRONG_HASH, b.accelerator.hash & 0xFFFF_FFFF
    if name == "checksum":
        info = int(np.bitwise_xor.reduce(words, axis=None))
    if cause == Cause.READ_ERROR:
        burst = b.accelerator.burst_beats * bus_bytes
        info = (PROGRAM if name == "header read" else PROGRAM + 256) + (32 if burst == 32 else 0)

    async def host(ctx):
        await b.setup(ctx, [END])
        assert await b.read(ctx, "STATUS") == Status.LOADED
        b.put_program(COPY, **changes)
        b.read_errors.update([info] if cause == Cause.READ_ERROR else [])
        await b.load(ctx)
        assert await b.error(ctx) == (cause, info)
        await b.command(ctx, Control.CLEAR)
        assert await b.settle(ctx) == Status.INTERRUPT
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.NO_PROGRAM, 0)
        await b.command(ctx, Control.CLEAR)
        b.read_errors.clear()
        await b.setup(ctx, COPY, address=PROGRAM + 0x480)
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR

    b.simulate(host, deadline=10000)
    assert len(b.runs) == 1


def test_entries(bench):
    """Entries begin anywhere; one beyond the program is an error, and so is a program that runs off its end."""
    b = bench()

    async def host(ctx):
        await b.setup(ctx, [store(0, 0, 1), END, store(0x20, 0, 1), store(0x40, 0, 1)])
        await b.write(ctx, "ENTRY", 1)
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR
        await b.write(ctx, "ENTRY", 4)
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.NO_PROGRAM, 4)
        await b.command(ctx, Control.CLEAR)
        await b.write(ctx, "ENTRY", 2)
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.ILLEGAL_INSTRUCTION, 4)

    b.simulate(host)
    assert len(b.runs) == 1


def test_load_while_busy(bench):
    b = bench()

    async def host(ctx):
        await b.setup(ctx, COPY)
        await b.command(ctx, Control.START)
        await b.command(ctx, Control.LOAD)
        assert await b.error(ctx) == (Cause.QUEUE_FULL, 0)
        assert await b.read(ctx, "STATUS") & Status.LOADED

    b.simulate(host)


def test_watchdog(bench):
    """A run of exactly WATCHDOG cycles ends well, a longer one does not; a silent memory is reported at once."""
    b = bench()

    async def host(ctx):
        await b.setup(ctx, COPY)
        await b.command(ctx, Control.START)
        await b.settle(ctx)
        cycles = await b.read(ctx, "CYCLES")
        await b.write(ctx, "WATCHDOG", cycles)
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR
        await b.write(ctx, "WATCHDOG", cycles - 1)
        await b.command(ctx, Control.START)
        assert await b.error(ctx) == (Cause.WATCHDOG, 2)

        await b.command(ctx, Control.CLEAR)
        b.silent = True
        await b.command(ctx, Control.START)
        while not (status := await b.read(ctx, "STATUS")) & Status.ERROR:
            pass
        assert status & Status.BUSY
        assert await b.read(ctx, "CAUSE") == Cause.WATCHDOG
        b.silent = False
        await b.settle(ctx)

    b.simulate(host)
    assert len(b.runs) == 2


def test_semaphores(bench):
    """Instructions of four engines that pass a token around start in its order, each two cycles after the one before is done."""
    b = bench()
    ring = (Engine.MATRIX, Engine.VECTOR, Engine.MATRIX)
    m_to_v, v_to_m = pair(*ring[:2]), pair(*ring[1:])
    m = [Instruction(Opcode.MATRIX, dict(wait=v_to_m if i else 0, signal=m_to_v)) for i in range(6)]
    v = [Instruction(Opcode.VECTOR, dict(wait=m_to_v, signal=v_to_m)) for _ in range(6)]

    async def host(ctx):
        await b.setup(ctx, [*m[:4], *v, *m[4:], END])
        await b.command(ctx, Control.START)
        assert not await b.settle(ctx) & Status.ERROR

    b.simulate(host)
    (run,) = b.runs
    starts = [s for both in zip(run.starts["matrix"], run.starts["vector"], strict=True) for s in both]
    # The second one waits for its dispatch: it is the fifth of the program.
    assert starts[1:] == [starts[1] + i * (STRANGER_CYCLES + 2) for i in range(11)]
    assert run.cycles == run.dones["vector"][-1] + 2
