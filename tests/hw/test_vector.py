"""The vector engine against arch.numerics, and cycle for cycle against its timing model, with random stalls."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from amaranth.sim import Simulator

from terrazzo.arch import isa, numerics
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.isa import Instruction, LoadTarget, Opcode, VectorOp
from terrazzo.arch.layout import Layout
from terrazzo.hw import vector
from terrazzo.sim.timing import vector as timing
from terrazzo.sim.timing.table import program_table

WATCHDOG_CYCLES = 20_000


def accelerator(columns: int, depth: int, vector: int) -> Accelerator:
    return Accelerator(
        lanes=Lanes(fixed8=max(2, columns)),
        columns=columns,
        depth=depth,
        drain=2,
        vector=vector,
        scratchpad_regions=4,
        scratchpad_rows=1024,
        weight_rows=16,
        param_rows=16,
        norm_rows=520,
        operand_chunks=8,
        row_scales=32,
        index_rows=64,
        table_pages=2,
        instructions=16,
        bus_bytes=8,
        burst_beats=4,
    )


class Bench:
    """An engine with a scratchpad whose ports stall, run beside its timing model."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.engine = vector.Engine(accelerator)
        self.simulator = Simulator(self.engine)
        self.simulator.add_clock(1e-6)
        self.simulator.add_testbench(self.drive)
        self.used = False

    def run(self, memory, tables, norm, instructions, *, seed, read_ready, write_ready, halt_at=None):
        """Loads the tables, executes `instructions` back to back; returns the row scales written.

        `memory` (rows, bytes) is changed in place. `self.cycles` counts from the first instruction's start to the
        last `done`. Checks each cycle's ready, requests and done against the timing model.
        """
        self.memory, self.tables, self.norm, self.instructions = memory, tables, norm, instructions
        self.rng = np.random.default_rng(seed)
        self.read_ready, self.write_ready, self.halt_at = read_ready, write_ready, halt_at
        self.row_scales: dict[int, list[tuple[int, int]]] = {}
        if self.used:
            self.simulator.reset()
        self.used = True
        self.simulator.run()
        return self.row_scales

    async def drive(self, ctx):
        await self.load(ctx)
        await self.execute(ctx)

    async def load(self, ctx):
        port = self.engine.load
        ctx.set(port.valid, 1)
        contents = [
            (LoadTarget.TABLE, self.tables["unary"].astype("i1")),
            (LoadTarget.EXP, self.tables["exp"].astype("u1")),
            (LoadTarget.RECIP, self.tables["recip"].astype("<u2")),
            (LoadTarget.RSQRT, self.tables["rsqrt"].astype("<u2")),
        ]
        rows = [
            (target, row, int.from_bytes(data.tobytes()[row * 8 :][:8], "little"))
            for target, data in contents
            for row in range(data.nbytes // 8)
        ]
        rows += [(LoadTarget.NORM, row, value) for row, value in self.norm.items()]
        for target, row, value in rows:
            ctx.set(port.target, target)
            ctx.set(port.row, row)
            ctx.set(port.data, value)
            assert ctx.get(port.ready)
            await ctx.tick()
        ctx.set(port.valid, 0)

    async def execute(self, ctx):
        engine, rng = self.engine, self.rng
        words = np.stack([isa.encode(instruction) for instruction in self.instructions])
        table, cfg = program_table(words), timing.config(self.accelerator)
        state = np.zeros(timing.STATE, dtype=np.int64)
        rows = self.accelerator.scratchpad_rows
        data, following, completed = [0, 0], 0, 0
        readable = [readable_rows(self.accelerator, instruction) for instruction in self.instructions]
        self.cycles = 0
        while completed < len(self.instructions):
            ctx.set(engine.control.i.valid, following < len(self.instructions))
            if following < len(self.instructions):
                payload = int.from_bytes(words[following].tobytes(), "little")
                ctx.set(engine.control.i.payload.as_value(), payload)
            if self.halt_at is not None and self.cycles >= self.halt_at:
                await self.halted(ctx)
                return
            ctx.set(engine.read.ready, int(rng.random() < self.read_ready))
            ctx.set(engine.write.ready, int(rng.random() < self.write_ready))
            ctx.set(engine.read.data, data[0])

            read_row, write_row = ctx.get(engine.read.row), ctx.get(engine.write.row)
            read, write = ctx.get(engine.read.valid), ctx.get(engine.write.valid)
            read_granted, write_granted = (
                read and ctx.get(engine.read.ready),
                write and ctx.get(engine.write.ready),
            )
            accepted, done = ctx.get(engine.control.i.ready), ctx.get(engine.control.done)
            expected = timing.request(state, table, cfg)
            assert (read_row // rows if read else -1, write_row // rows if write else -1) == expected
            assert accepted == timing.ready(state, cfg)
            assert ctx.get(engine.control.busy) == timing.busy(state)
            assert ctx.get(engine.control.stalled) == timing.stalled(
                state, table, read_granted, write_granted
            )
            start = following if accepted and following < len(self.instructions) else -1
            finished = timing.step(state, table, cfg, start, read_granted, write_granted)
            assert (finished >= 0) == done
            following += start >= 0
            assert not read or read_row in readable[completed]
            if done:
                assert finished == completed
                assert ctx.get(engine.control.done_tag) == self.instructions[completed].tag
                assert ctx.get(engine.control.done_signal) == self.instructions[completed].signal
                completed += 1
            noise = int.from_bytes(rng.bytes(self.memory.shape[1]), "little")
            value = int.from_bytes(self.memory[read_row].tobytes(), "little") if read_granted else noise
            data = [data[1], value]
            if write_granted:
                self.write(ctx)
            if ctx.get(engine.row_scales.valid):
                scales = ctx.get(engine.row_scales.scales)
                self.row_scales[ctx.get(engine.row_scales.row)] = [
                    (scale.m, scale.n) for scale in (scales[c] for c in range(self.accelerator.columns))
                ]
            self.cycles += following > 0
            assert self.cycles < WATCHDOG_CYCLES
            await ctx.tick()

    def write(self, ctx):
        port, size = self.engine.write, self.memory.shape[1]
        mask = np.array([ctx.get(port.mask) >> i & 1 for i in range(size)], dtype=bool)
        data = np.frombuffer(ctx.get(port.data).to_bytes(size, "little"), dtype=np.uint8)
        self.memory[ctx.get(port.row)][mask] = data[mask]

    async def halted(self, ctx):
        engine = self.engine
        ctx.set(engine.control.halt, 1)
        ctx.set(engine.read.ready, 1)
        ctx.set(engine.write.ready, 1)
        for _ in range(100):
            assert not ctx.get(engine.read.valid) and not ctx.get(engine.write.valid)
            assert not ctx.get(engine.control.i.ready) and not ctx.get(engine.control.done)
            await ctx.tick()


def readable_rows(a: Accelerator, f: Instruction) -> set[int]:
    """Rows of the operands: nothing else may be read."""
    wide = f.src_wide or f.op != VectorOp.ELEMENTWISE
    operands = [(f.src, f.src_stride, 1 + bool(wide))]
    if f.residual:
        operands.append((f.residual_row, f.residual_stride, 2))
    return {
        row + tile * stride + i
        for row, stride, size in operands
        for tile in range(-(-f.positions // a.columns))
        for i in range(-(-f.channels * size // a.depth))
    }


@functools.cache
def bench(columns: int, depth: int, vector: int) -> Bench:
    return Bench(accelerator(columns, depth, vector))


def random_tables(rng, pages: int, *, real: bool = True) -> dict[str, np.ndarray]:
    """Random unary tables; the others as the compiler ships them, or random too (they are data)."""
    return {
        "unary": rng.integers(-128, 128, 1024 * pages),
        "exp": numerics.exp_table() if real else rng.integers(0, 256, 256),
        "recip": numerics.recip_table() if real else rng.integers(0, 1 << 16, 256),
        "rsqrt": numerics.rsqrt_table() if real else rng.integers(0, 1 << 16, 1024),
    }


def read_tensor(a: Accelerator, memory, row: int, layout: Layout) -> np.ndarray:
    return layout.unpack(a, memory[row : row + layout.rows(a)])


def write_codes(a: Accelerator, memory, row: int, stride: int, codes: np.ndarray, size: int) -> None:
    """Codes (positions, channels) into their bytes; no others change."""
    for p, channels in enumerate(codes):
        for o, code in enumerate(channels):
            at, byte = (
                row + p // a.columns * stride + o * size // a.depth,
                p % a.columns * a.depth + o * size % a.depth,
            )
            memory[at, byte : byte + size] = np.frombuffer(
                int(code).to_bytes(4, "little", signed=True)[:size], "u1"
            )


def expected(a: Accelerator, memory, tables, norm_records, instruction: Instruction):
    """docs/machine.md, VECTOR: changes `memory`; returns {row: scales of the columns that are positions}."""
    f = instruction
    wide = bool(f.src_wide) or f.op != VectorOp.ELEMENTWISE
    layout = Layout(positions=f.positions, channels=f.channels, wide=wide, stride=f.src_stride)
    x = read_tensor(a, memory, f.src, layout)
    multiple, size, scales = a.vector, 1, {}
    if f.op == VectorOp.ELEMENTWISE:
        size = 1 + f.dst_wide
        if f.residual:
            layout = Layout(positions=f.positions, channels=f.channels, wide=True, stride=f.residual_stride)
            r = read_tensor(a, memory, f.residual_row, layout)
            t = numerics.requantize(x, f.m, f.n, f.constant, -(1 << 62), 1 << 62)
            y = numerics.residual_add(t, r, f.residual_m, f.residual_n, f.lo, f.hi)
        elif f.table:
            page = tables["unary"][1024 * f.table_page :][: 1024 if f.table_wide else 256]
            t = numerics.requantize(x, f.m, f.n, f.constant, -(1 << 62), 1 << 62)
            y = numerics.clamp(numerics.lookup(t, page), f.lo, f.hi)
        else:
            y = numerics.requantize(x, f.m, f.n, f.constant, f.lo, f.hi)
    elif f.op == VectorOp.LAYERNORM:
        g, b = (
            np.array([norm_records[f.param * a.vector + h][k] for h in range(f.channels)]) for k in (0, 1)
        )
        y = numerics.layernorm(x, g, b, f.n, f.constant, tables["rsqrt"], f.lo, f.hi)
    else:
        y = numerics.softmax_exp(x, tables["exp"])
        multiple = a.depth
        scale = numerics.softmax_row_scale(y.sum(axis=-1), f.m, f.n, tables["recip"])
        for p in range(f.positions):
            scales.setdefault(f.param + p // a.columns, []).append((int(scale.m[p]), int(scale.n[p])))
    padded = np.zeros((f.positions, -(-f.channels // multiple) * multiple), dtype=np.int64)
    padded[:, : f.channels] = y
    write_codes(a, memory, f.dst, f.dst_stride, padded, size)
    return scales


def random_instruction(
    rng, a: Accelerator, op: VectorOp, positions: int, channels: int, **given
) -> Instruction:
    """Legal fields; source, residual and destination each in a region of their own."""
    span = -(-positions // a.columns)
    need = -(-channels * 2 // a.depth) + (2 if op == VectorOp.SOFTMAX else 1)
    stride = int(rng.integers(need, need + 3))
    assert span * stride <= a.scratchpad_rows - 2
    regions = rng.permutation(a.scratchpad_regions) * a.scratchpad_rows
    lo, hi = sorted(int(v) for v in rng.integers(-128, 128, 2))
    values = {
        "op": op,
        "tag": int(rng.integers(1024)),
        "signal": int(rng.integers(1 << 16)),
        "positions": positions,
        "channels": channels,
        "src": int(regions[0] + rng.integers(2)),
        "src_stride": stride,
        "src_wide": 1,
        "dst": int(regions[1] + rng.integers(2)),
        "dst_stride": stride,
        "lo": lo,
        "hi": hi,
        "param": int(rng.integers(3)),
    }
    if op == VectorOp.ELEMENTWISE:
        n = int(rng.choice([1, 16, 17, 20, 24, 31, 40, 47]))
        m = int(rng.integers(1 << 15, 1 << 16))
        wide = bool(rng.integers(2))
        flavour = int(rng.integers(3))
        values |= {
            "src_wide": int(rng.integers(2)),
            "dst_wide": wide,
            "m": m,
            "n": n,
            "constant": (1 << (n - 1)) + int(rng.integers(-5, 5)) * (1 << min(n, 43)),
            "table": int(flavour == 1),
            "table_wide": int(rng.integers(2)),
            "table_page": int(rng.integers(a.table_pages)),
            "residual": int(flavour == 2),
            "residual_row": int(regions[2] + rng.integers(2)),
            "residual_stride": stride,
            "residual_m": int(rng.integers(1 << 16)),
            "residual_n": int(rng.integers(1, 48)),
        }
        if wide:
            values["lo"], values["hi"] = -32768, int(rng.integers(32768))
    elif op == VectorOp.LAYERNORM:
        values |= {
            "n": int(rng.integers(14, 24)),
            "constant": int(rng.choice([1, 77, 1 << 30, (1 << 47) - 1])),
        }
    else:
        values |= {"m": int(rng.integers(1 << 15, 1 << 16)), "n": int(rng.integers(1, 30))}
    return Instruction(Opcode.VECTOR, values | given)


def random_memory(rng, a: Accelerator, kind: int) -> np.ndarray:
    """Scratchpad contents: random, small, extreme, constant within a region, one dominant."""
    rows = a.scratchpad_regions * a.scratchpad_rows
    codes = rng.integers(-32768, 32768, (rows, a.scratchpad_row_bytes // 2))
    match kind:
        case 1:
            codes = rng.integers(-300, 300, codes.shape)
        case 2:
            codes = rng.choice([-32768, 32767], codes.shape)
        case 3:
            codes = np.full(codes.shape, rng.choice([-32768, -1, 0, 5, 32767]))
        case 4:
            codes = rng.integers(-1500, -1200, codes.shape)
            codes[:, 0] = 2047
    return codes.astype("<i2").view(np.uint8).copy()


def check(parameters, make, *, seed, read_ready=1.0, write_ready=1.0, kind=0) -> int:
    """Runs the instructions `make(rng, a)` and compares the scratchpad and row scales; returns cycles."""
    run = bench(*parameters)
    a, rng = run.accelerator, np.random.default_rng(seed)
    instructions = make(rng, a)
    memory, tables = random_memory(rng, a, kind), random_tables(rng, a.table_pages, real=kind != 1)
    records = [
        (int(g), int(b))
        for g, b in zip(
            rng.integers(-32768, 32768, a.norm_rows * a.vector),
            rng.integers(-(1 << 22), 1 << 22, a.norm_rows * a.vector),
            strict=True,
        )
    ]
    norm = {
        row: sum(
            ((g & 0xFFFF) | (b & (1 << 48) - 1) << 16) << 64 * i
            for i, (g, b) in enumerate(records[row * a.vector : (row + 1) * a.vector])
        )
        for row in range(2 + -(-max(instruction.channels for instruction in instructions) // a.vector))
    }
    wanted, wanted_scales = memory.copy(), {}
    for instruction in instructions:
        wanted_scales |= expected(a, wanted, tables, records, instruction)
    scales = run.run(
        memory, tables, norm, instructions, seed=seed, read_ready=read_ready, write_ready=write_ready
    )
    wrong = np.argwhere(memory != wanted)
    assert not len(wrong), (wrong[:4].tolist(), [isa.disassemble(i) for i in instructions])
    assert scales.keys() == wanted_scales.keys()
    for row, columns in wanted_scales.items():
        assert scales[row][: len(columns)] == columns
    return run.cycles


PARAMETERS = [(2, 4, 1), (2, 4, 2), (2, 8, 2), (2, 8, 4), (4, 8, 4)]
STALLS = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3), (0.6, 0.6)]


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("parameters", PARAMETERS)
@pytest.mark.parametrize("seed", range(5))
def test_random_instructions(parameters, op, seed):
    """All kinds of memory contents, sizes and stalls."""

    def make(rng, a):
        return [
            random_instruction(rng, a, op, int(rng.integers(1, 3 * a.columns + 1)), int(rng.integers(1, 40)))
            for _ in range(2)
        ]

    read_ready, write_ready = STALLS[seed % len(STALLS)]
    check(parameters, make, seed=seed, read_ready=read_ready, write_ready=write_ready, kind=seed)


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("positions, channels", [(1, 1), (1, 17), (3, 17), (7, 3), (2, 8), (5, 64), (9, 1)])
def test_awkward_sizes(op, positions, channels):
    """One position, channels that fill neither steps nor words, many tiles of one step."""
    for kind in range(2):
        check(
            (2, 8, 4),
            lambda rng, a: [random_instruction(rng, a, op, positions, channels)],
            seed=channels + kind,
            write_ready=1.0 - 0.5 * kind,
            kind=kind,
        )


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("kind", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_extreme_values(op, kind, seed):
    """Saturating sums, constant rows, one dominant logit."""
    check((2, 8, 2), lambda rng, a: [random_instruction(rng, a, op, 4, 29)], seed=seed, kind=kind)


def test_layernorm_of_many_channels():
    """The largest variance: 2047 channels at both ends of their range."""
    check((2, 8, 4), lambda rng, a: [random_instruction(rng, a, VectorOp.LAYERNORM, 2, 2047)], seed=3, kind=2)


def test_softmax_of_empty_exponentials():
    """A row whose E sum to 0 gets m = 0, n = 1."""
    run = bench(2, 8, 2)
    a = run.accelerator
    rng = np.random.default_rng(0)
    tables = random_tables(rng, a.table_pages) | {"exp": np.zeros(256, dtype=np.int64)}
    instruction = random_instruction(rng, a, VectorOp.SOFTMAX, 2, 9)
    scales = run.run(random_memory(rng, a, 0), tables, {}, [instruction], seed=0, read_ready=1, write_ready=1)
    assert scales == {instruction.param: [(0, 1), (0, 1)]}


@pytest.mark.parametrize(
    "op, channels, passes, fixed",
    [(VectorOp.ELEMENTWISE, 64, 1, 20), (VectorOp.LAYERNORM, 64, 2, 36), (VectorOp.SOFTMAX, 64, 2, 44)],
)
def test_throughput(op, channels, passes, fixed):
    """One step per cycle in every pass, and nothing between tiles."""
    cycles = check(
        (2, 8, 4),
        lambda rng, a: [random_instruction(rng, a, op, 10, channels, residual=0)],
        seed=1,
    )
    assert cycles <= 5 * passes * channels // 4 + fixed


@pytest.mark.parametrize("halt_at", [0, 5, 30, 60])
def test_halt(halt_at):
    """Nothing is asked for and nothing completes while `halt` is high."""
    run = bench(2, 8, 2)
    a, rng = run.accelerator, np.random.default_rng(halt_at)
    instruction = random_instruction(rng, a, VectorOp.LAYERNORM, 6, 30)
    memory, tables = random_memory(rng, a, 0), random_tables(rng, a.table_pages)
    run.run(memory, tables, {}, [instruction], seed=1, read_ready=1, write_ready=1, halt_at=halt_at)
