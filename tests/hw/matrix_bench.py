"""Simulation of the matrix engine with a scratchpad, a loader and random fetch grants."""

import dataclasses

import numpy as np
from amaranth.sim import Simulator
from amaranth.utils import ceil_log2

from terrazzo.arch import isa, schemes
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.hw import matrix

from .matrix_model import Memories, largest

__all__ = ["CONFIGURATIONS", "Bench", "Cycle", "random_instruction"]

SMALL = Accelerator(
    lanes=Lanes(fixed8=4, pot4=2),
    columns=2,
    depth=4,
    drain=2,
    vector=2,
    scratchpad_regions=8,
    scratchpad_rows=32,
    weight_rows=64,
    param_rows=64,
    norm_rows=8,
    operand_chunks=16,
    row_scales=16,
    index_rows=128,
    table_pages=2,
    instructions=16,
    bus_bytes=8,
    burst_beats=4,
)
CONFIGURATIONS = {
    "small": SMALL,
    "columns_4": dataclasses.replace(
        SMALL,
        columns=4,
        lanes=Lanes(fixed8=4, fixed4=4, sp2_4=2, fixed4_quads=2, fixed4_dynamic=4),
        operand_chunks=32,
        row_maxima=9,
        row_moments=8,
    ),
    "deep": dataclasses.replace(
        SMALL,
        depth=8,
        drain=4,
        lanes=Lanes(fixed8=8, fixed4=4, pot4=4, fixed8_luts=2, fixed4_dynamic=4),
        row_moments=16,
    ),
    "narrow": dataclasses.replace(
        SMALL,
        depth=16,
        lanes=Lanes(
            fixed8=4, fixed4=8, fixed4_triples=3, fixed4_quads=4, fixed4_dynamic=6, fixed4_operand_bits=5
        ),
        plain_steps=2,
        tree_stages=2,
        drain_stages=4,
    ),
    "plain": dataclasses.replace(
        SMALL, depth=8, lanes=Lanes(fixed8=4, pot4=6), plain_steps=2, row_maxima=8, row_moments=8
    ),
    "private_2": dataclasses.replace(SMALL, lanes=Lanes(fixed8=8, sp2_4=2), private=2),
    "private_4": dataclasses.replace(
        SMALL, columns=4, lanes=Lanes(fixed8=16, pot4=2), operand_chunks=32, private=4
    ),
    "columns_3": dataclasses.replace(
        SMALL,
        columns=3,
        depth=8,
        drain=4,
        lanes=Lanes(fixed8=16, pot4=4, binary=4),
        operand_chunks=32,
        row_maxima=8,
    ),
    "columns_5": dataclasses.replace(
        SMALL,
        columns=5,
        depth=8,
        lanes=Lanes(fixed8=8, ternary=2, binary=2),
        operand_chunks=64,
        row_maxima=8,
        row_moments=9,
    ),
    "two_taps": dataclasses.replace(SMALL, private=2, broadcast_stages=3),
    "two_taps_4": dataclasses.replace(
        SMALL, columns=4, lanes=Lanes(fixed8=8, pot4=2), operand_chunks=32, private=4
    ),
    "drain_1": dataclasses.replace(
        SMALL,
        drain=1,
        lanes=Lanes(fixed8=2, fixed4=3, sp2_4=1, ternary=1, fixed4_triples=3),
        row_maxima=8,
        row_moments=16,
    ),
    "digits": dataclasses.replace(
        SMALL,
        depth=8,
        lanes=Lanes(
            fixed8=4,
            fixed4=6,
            pot4=2,
            fixed4_triples=3,
            fixed4_quads=2,
            fixed4_dynamic=2,
            fixed4_operand_bits=5,
            fixed4_digits=True,
        ),
        broadcast_stages=2,
        tree_stages=3,
        drain_stages=2,
    ),
}


STATISTICS_AFTER = 16
"""Cycles after an instruction's `done` in which its last row maxima (4) and row moments (8 + columns) may come."""


@dataclasses.dataclass
class Cycle:
    """What the engine shows in one clock cycle; rows are -1 where nothing is requested."""

    ready: int
    residual: int
    fetch: int
    write: int
    weights: int
    done: int
    """Tag + 1 of the instruction that is done, or 0."""
    busy: int
    stalled: int
    granted: int
    """Whether the fetch's request was granted."""
    started: int
    """Index of the instruction that was transferred, or -1."""


class Bench:
    """Runs instructions on the RTL; `cycles` tells what was seen, `memory` holds the results."""

    def __init__(self, accelerator, memory: Memories, *, seed: int = 0, grant: float = 1.0, gap: float = 0.0):
        self.accelerator, self.memory = accelerator, memory
        self.random = np.random.default_rng(seed)
        self.grant, self.gap = grant, gap
        self.cycles: list[Cycle] = []
        self.dut = matrix.Engine(accelerator)

    def run(
        self, instructions, *, limit: int = 20000, halt_at: int | None = None, serial: bool = False
    ) -> None:
        """Loads the memories and executes; raises AssertionError after `limit` cycles."""
        simulator = Simulator(self.dut)
        simulator.add_clock(1e-9)
        self.halt_at, self.serial = halt_at, serial

        async def testbench(ctx):
            await self.load(ctx)
            await self.execute(ctx, instructions, limit)
            self.read_weights(ctx)

        simulator.add_testbench(testbench)
        simulator.run()

    async def load_row(self, ctx, target, row, value):
        port = self.dut.load
        ctx.set(port.valid, 1)
        ctx.set(port.target, target)
        ctx.set(port.row, row)
        ctx.set(port.data, value)
        assert ctx.get(port.ready)
        await ctx.tick()
        ctx.set(port.valid, 0)

    async def load(self, ctx):
        a, memory = self.accelerator, self.memory
        for row in range(a.weight_rows):
            value, offset = 0, 0
            for lane, kind in enumerate(a.lanes.kinds):
                bits = schemes.storage_bits(kind)
                for i in range(a.depth):
                    value |= int(memory.patterns[row, lane, i]) << offset
                    offset += bits
            await self.load_row(ctx, isa.LoadTarget.WEIGHT, row, value)
        for row in range(a.param_rows):
            value = 0
            for i in range(a.drain):
                record = int(memory.m[row, i]) | int(memory.n[row, i]) << 16 | int(memory.entry[row, i]) << 24
                record |= (int(memory.constant[row, i]) & (1 << 48) - 1) << 32
                value |= record << 80 * i
            await self.load_row(ctx, isa.LoadTarget.PARAM, row, value)
        for row, octet in enumerate(memory.tables.reshape(-1, 8)):
            value = int.from_bytes(bytes(int(v) & 255 for v in octet), "little")
            await self.load_row(ctx, isa.LoadTarget.TABLE, row, value)
        for row in range(a.row_scales):
            port = self.dut.row_scales
            scales = [
                {"m": int(memory.scale_m[row, c]), "n": int(memory.scale_n[row, c])} for c in range(a.columns)
            ]
            ctx.set(port.valid, 1)
            ctx.set(port.row, row)
            ctx.set(port.scales, scales)
            await ctx.tick()
            ctx.set(port.valid, 0)

    def word(self, row) -> int:
        return int.from_bytes(self.memory.scratchpad[row].tobytes(), "little")

    async def execute(self, ctx, instructions, limit):
        dut, control = self.dut, self.dut.control
        ctx.set(dut.residual.ready, 1)
        ctx.set(dut.write.ready, 1)
        arriving = {"fetch": [0, 0], "residual": [0, 0]}
        private = self.accelerator.private
        sent = finished = 0
        while finished < len(instructions):
            assert len(self.cycles) < limit, f"watchdog: {finished} of {len(instructions)} instructions done"
            granted = self.random.random() < self.grant
            ctx.set(dut.fetch.ready, granted)
            ctx.set(control.halt, self.halt_at is not None and len(self.cycles) >= self.halt_at - 1)
            offer = sent < len(instructions) and self.random.random() >= self.gap
            offer = offer and not (self.serial and sent > finished)
            ctx.set(control.i.valid, offer)
            if offer:
                word = int.from_bytes(isa.encode(instructions[sent]).tobytes(), "little")
                ctx.set(control.i.payload, control.i.payload.shape().from_bits(word))
            for name, queue in arriving.items():
                ctx.set(getattr(dut, name).data, queue.pop(0))

            def row(port):
                return ctx.get(port.row) if ctx.get(port.valid) else -1

            started = sent if offer and ctx.get(control.i.ready) else -1
            cycle = Cycle(
                ready=ctx.get(control.i.ready),
                residual=row(dut.residual),
                fetch=row(dut.fetch),
                write=row(dut.write),
                weights=self.weights_written(ctx),
                done=ctx.get(control.done) * (ctx.get(control.done_tag) + 1),
                busy=ctx.get(control.busy),
                stalled=0,  # known in the next cycle
                granted=granted and ctx.get(dut.fetch.valid),
                started=started,
            )
            self.cycles.append(cycle)
            rows = [self.word(cycle.fetch | i) if cycle.granted else self.noise() for i in range(private)]
            bits = self.accelerator.scratchpad_row_bytes * 8
            arriving["fetch"].append(sum(word << i * bits for i, word in enumerate(rows)))
            arriving["residual"].append(self.word(cycle.residual) if cycle.residual >= 0 else self.noise())
            self.keep_statistics(ctx)
            if cycle.write >= 0:
                self.write(cycle.write, ctx.get(dut.write.data), ctx.get(dut.write.mask))
            sent += started >= 0
            finished += cycle.done > 0
            entry = ctx.get(dut.index_read.entry)
            await ctx.tick()
            cycle.stalled = ctx.get(control.stalled)
            if self.halt_at is not None and len(self.cycles) > self.halt_at + 60:
                return
            ctx.set(dut.index_read.value, int(self.memory.index[entry % len(self.memory.index)]))
        for _ in range(STATISTICS_AFTER):
            self.keep_statistics(ctx)
            await ctx.tick()

    def keep_statistics(self, ctx):
        """What the row maxima and row moments are told in this cycle."""
        if self.accelerator.row_maxima and ctx.get(self.dut.row_maxima.valid):
            port = self.dut.row_maxima
            for c in range(self.accelerator.columns):
                self.memory.maxima[ctx.get(port.row), c] = ctx.get(port.maxima[c])
        if self.accelerator.row_moments and ctx.get(self.dut.row_moments.valid):
            port = self.dut.row_moments
            place = divmod(ctx.get(port.entry), 1 << ceil_log2(self.accelerator.columns))
            self.memory.moments[place] = ctx.get(port.moments.sum), ctx.get(port.moments.squares)

    def noise(self) -> int:
        """What a read port shows when nothing was granted."""
        return int.from_bytes(self.random.bytes(self.accelerator.scratchpad_row_bytes), "little")

    def weights_written(self, ctx) -> int:
        """Whether a LOAD of weights would have to wait."""
        ctx.set(self.dut.load.target, isa.LoadTarget.WEIGHT)
        return 1 - ctx.get(self.dut.load.ready)

    def write(self, row, data, mask):
        a = self.accelerator
        for i in range(a.scratchpad_row_bytes):
            if mask >> i & 1:
                self.memory.scratchpad[row, i // a.depth, i % a.depth] = data >> 8 * i & 255

    def read_weights(self, ctx):
        """Copies the weight memory of all lanes back into `memory`."""
        a = self.accelerator
        for lane, kind in enumerate(a.lanes.kinds):
            bits = schemes.storage_bits(kind)
            for row in range(a.weight_rows):
                value = ctx.get(self.dut.weights.rams[lane][row])
                for i in range(a.depth):
                    self.memory.patterns[row, lane, i] = value >> bits * i & (1 << bits) - 1


def random_instruction(a: Accelerator, random, tag: int, **forced) -> isa.Instruction:
    """A legal MATRIX instruction: sources in the lower half of scratchpad and weights, destinations in the upper."""

    def pick(lo, hi):
        return int(random.integers(lo, hi + 1))

    half = a.scratchpad_regions * a.scratchpad_rows // 2
    v = {"tag": tag, "signal": pick(0, 65535), "mode": pick(0, 2), "unsigned": pick(0, 1), **forced}
    narrow = a.lanes.fixed4_quads and not a.lanes.fixed4_digits  # operands are -largest(a)..largest(a)
    v["unsigned"] &= not narrow and (not a.lanes.fixed4_triples or a.lanes.fixed4_digits)
    if a.private > 1 and v["mode"] == isa.FetchMode.CONV:
        v.setdefault("private", int(random.random() < 0.7))
    private, unit = v.get("private", 0), 1
    if private:
        unit = v["tap_chunks"] = 1 << pick(0, a.private.bit_length() - 1)
        lanes = min(unit, a.private_chunks) * a.depth
        v |= {"gather": 0, "permute": 0, "steps": pick(1, lanes // a.drain)}
        v |= {"blocks": -(-unit // a.private_chunks)}
        v |= {"maximum": 0} if a.private_taps > 1 else {}
    linear, conv = v["mode"] == isa.FetchMode.LINEAR, v["mode"] == isa.FetchMode.CONV
    v.setdefault("positions", pick(1, 11))
    tiles = -(-v["positions"] // a.columns)
    v.setdefault("groups", pick(1, 1 if v["mode"] == isa.FetchMode.JOIN else 2))
    v.setdefault("blocks", pick(1, 3))
    v["param_mode"] = forced.get("param_mode", pick(0, 2))
    maximum = v.setdefault("maximum", int(random.random() < 0.2))
    fixed8 = maximum
    if a.lanes.fixed4_digits:  # operands have 8 bits
        v.setdefault("gather", int(random.random() < 0.2))
        v.setdefault("digits", int(not maximum and not v["gather"] and random.random() < 0.8))
        fixed8 = not v["digits"]
    token = v["param_mode"] == isa.ParamMode.TOKEN
    channels = v["param_mode"] == isa.ParamMode.CHANNEL
    plain = v["plain"] = int(a.plain_steps == 2 and not private and not channels and pick(0, 3) > 0)
    if plain:
        v |= {"destination": 0, "second": 0, "dst_channel": 0}
    most = (a.lanes.fixed8 if fixed8 else a.lanes.total) // (a.drain << plain)
    v.setdefault("steps", pick(1, most))
    v["permute"] = 0 if fixed8 or token or private or plain else forced.get("permute", pick(0, 1))
    if linear:
        v.setdefault("chunks", pick(1, 6))
        v["src_stride"] = v["groups"] * v["chunks"] + pick(0, 2)
        v["src"] = pick(0, half - 1 - tiles * v["src_stride"])
    else:
        v["taps_y"], v["taps_x"] = pick(1, 3), pick(1, 2)
        v.setdefault("tap_chunks", pick(1, 2))
        v["chunks"] = v["taps_y"] * (v["taps_x"] if conv else 1) * (1 if private else v["tap_chunks"])
        v["stride_y"], v["stride_x"] = pick(1, 2), pick(1, 2) if conv else pick(1, 7)
        v["start_y"], v["start_x"], v["prefix"] = pick(-2, 1), pick(-3, 2), pick(0, 3)
        v["height"], v["width"], v["out_width"] = (
            pick(1, 6),
            pick(1, 7) if conv else pick(1, 4 * a.depth),
            pick(1, 5),
        )
        v["advance_y"], v["advance_x"] = divmod(a.columns, v["out_width"])
        v["pad_value"] = pick(0, 127) if v["unsigned"] else pick(-128, 127)
        if narrow:
            v["pad_value"] = max(-largest(a), min(v["pad_value"], largest(a)))
        if conv:
            rows = -(-v["height"] * v["width"] // a.columns)
            v["src_stride"] = v["groups"] * v["tap_chunks"] + unit * pick(0, 1)
        else:
            rows = -(-v["height"] // a.columns)
            v["src_stride"] = -(-v["width"] // a.depth) + pick(0, 2)
        v["src"] = pick(0, half - 1 - rows * v["src_stride"]) // unit * unit
    v["weight_stride"] = v["chunks"] if random.random() < 0.5 else pick(0, 2)
    parts = v["groups"] * v["blocks"]
    if parts * v["weight_stride"] + v["chunks"] > a.weight_rows // 2:
        v["weight_stride"] = min(v["weight_stride"], 2)
    v["weight"] = pick(0, a.weight_rows // 2 - parts * v["weight_stride"] - v["chunks"])
    v["param"] = pick(0, a.row_scales - tiles if v["param_mode"] == isa.ParamMode.TOKEN else 20)
    v["lo"], v["hi"] = sorted((pick(-30000, 30000), pick(-30000, 30000)))
    outputs = v["groups"] * v["blocks"] * v["steps"] * (a.drain << plain)
    extra = pick(0, 2) if a.table_pages and not plain else 0
    if extra == 1 or v.get("table"):
        v |= {
            "table": 1,
            "table_wide": pick(0, 1),
            "table_page": pick(0, a.table_pages - 1),
            "lo": -128,
            "hi": pick(0, 127),
        }
    elif extra == 2:
        v["residual_stride"] = -(-outputs * 2 // a.depth) + pick(0, 1)
        v |= {"residual": 1, "residual_row": pick(0, half - tiles * v["residual_stride"])}
        v |= {"residual_m": pick(0, 65535), "residual_n": pick(1, 24)}
    destination = v.setdefault("destination", pick(0, 2))
    if destination == isa.Destination.SCRATCHPAD:
        size = 1 + v.setdefault("wide", pick(0, 1))
        first = v.setdefault("dst_channel", pick(0, 3) * a.drain)
        v["dst_stride"] = -(-(first + outputs) * size // a.depth) + pick(0, 1)
        room = half // 2 - tiles * v["dst_stride"]
        if room < 0:
            return random_instruction(a, random, tag, **forced)
        v["dst"] = half + pick(0, room)
    else:
        keys, word = destination == isa.Destination.KEYS, a.depth // a.columns
        lanes = a.lanes.dynamic if random.random() < 0.7 else a.lanes.fixed8
        most = lanes // a.depth * word + min(lanes % a.depth // a.columns, word) if keys else lanes // a.drain
        block = v["dst_block"] = most if random.random() < 0.5 else pick(1, most)
        v["dst_part"] = pick(0, block - 1)
        last = (block - 1) // word * a.depth + (block - 1) % word * a.columns + a.columns
        if (last if keys else block * a.drain) > a.lanes.fixed8:
            v["lo"], v["hi"] = pick(-8, -1), pick(0, 7)
        v["dst_stride"] = (-(-outputs // a.depth) if keys else -(-tiles // word)) + pick(0, 1)
        count = v["dst_part"] + (tiles if keys else outputs // a.drain)
        rows = -(-count // block) * v["dst_stride"] + 1
        if rows > a.weight_rows // 2:
            return random_instruction(a, random, tag, **forced)
        v["dst"] = a.weight_rows // 2 + pick(0, a.weight_rows // 2 - rows)
    if v.setdefault("second", pick(0, 1)):
        v["second_stride"] = -(-outputs // a.depth) + pick(0, 1)
        v["second_dst"] = half + half // 2 + pick(0, half // 2 - tiles * v["second_stride"])
        v |= {
            "second_m": pick(0, 65535),
            "second_n": pick(1, 24),
            "second_constant": pick(-(1 << 30), 1 << 30),
        }
        v["second_lo"], v["second_hi"] = sorted((pick(-128, 127), pick(-128, 127)))
    if v.setdefault("gather", int(random.random() < 0.3)):
        v["index"] = pick(0, a.index_rows - v["groups"] * v["blocks"] * v["chunks"])
        v["weight"] = pick(0, 9)
    v.setdefault("skip", pick(0, v["steps"] - 1) if random.random() < 0.5 else 0)
    kept = a.row_maxima and destination == isa.Destination.SCRATCHPAD and not v["second"]
    if kept and v.setdefault("maxima", pick(0, 1)):
        v |= {"lo": max(v["lo"], pick(-2048, 0)), "hi": min(v["hi"], pick(0, 2047))}
        v |= {"second_dst": pick(0, a.row_maxima - tiles)}
        v |= {"second_stride": pick(1, outputs - v["skip"] * (a.drain << plain))}
        if v["lo"] > v["hi"]:
            v["lo"], v["hi"] = -2048, 2047
    drained = v["groups"] * v["blocks"] * v["steps"] - v["skip"]
    kept = a.row_moments and destination == isa.Destination.SCRATCHPAD and drained >= a.moment_steps
    if kept and not (plain or v["second"] or v.get("maxima")) and tiles <= a.row_moments:
        v.setdefault("moments", pick(0, 2))
        v |= {"second_dst": pick(0, a.row_moments - tiles)} if v["moments"] else {}
    return isa.Instruction(isa.Opcode.MATRIX, v)
