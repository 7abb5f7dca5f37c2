"""MATRIX instructions by the loops of docs/machine.md, one number at a time."""

import numpy as np

from terrazzo.arch import schemes
from terrazzo.arch.isa import Destination, FetchMode, Moments, ParamMode

__all__ = ["Memories", "execute", "largest"]


def largest(accelerator) -> int:
    """Operand of a machine that has lanes with four products in a multiplier, which may hold codes -8..7."""
    return min(31, (1 << accelerator.lanes.fixed4_operand_bits - 1) - 1)


class Memories:
    """What a MATRIX instruction reads and writes."""

    def __init__(self, accelerator, random):
        a = self.accelerator = accelerator
        self.scratchpad = random.integers(
            0, 256, (a.scratchpad_regions * a.scratchpad_rows, a.columns, a.depth), dtype=np.uint8
        )
        if a.lanes.fixed4_quads and not a.lanes.fixed4_digits:
            most = largest(a)
            self.scratchpad = random.integers(-most, most + 1, self.scratchpad.shape).astype(np.uint8)
        self.patterns = np.zeros((a.weight_rows, a.lanes.total, a.depth), dtype=np.int64)
        for lane, kind in enumerate(a.lanes.kinds):
            codes = random.choice(schemes.codebook(kind), (a.weight_rows, a.depth))
            self.patterns[:, lane] = schemes.encode(codes, kind)
            if a.lanes.fixed8 <= lane < a.lanes.dynamic:  # what is left of keys and values
                self.patterns[:, lane] = random.integers(0, 16, codes.shape)
        shape = (a.param_rows, a.drain)
        self.m = random.integers(1 << 15, 1 << 16, shape)
        self.n = random.integers(17, 27, shape)
        self.entry = random.integers(0, a.lanes.total // a.drain, shape)
        self.constant = random.integers(-(1 << 30), 1 << 30, shape) + random.integers(-5000, 5000, shape)
        self.scale_m = random.integers(1 << 15, 1 << 16, (a.row_scales, a.columns))
        self.scale_n = random.integers(17, 27, (a.row_scales, a.columns))
        dead = random.random((a.row_scales, a.columns)) < 0.1
        self.scale_m[dead], self.scale_n[dead] = 0, 1
        self.index = random.integers(0, a.weight_rows // 2 - 9, a.index_rows)
        self.tables = random.integers(-128, 128, (a.table_pages, 1024))
        self.maxima = {}
        """Row maxima that instructions wrote, by row and column; of their rows no others, which hold anything."""

        self.moments = {}
        """Row moments, sum and sum of squares, that instructions wrote; None where there is anything."""

    def weight(self, row, lane, i):
        """A weight's value."""
        return int(schemes.decode(self.patterns[row, lane, i], self.accelerator.lanes.kinds[lane]))


def stored(memory, lane, value):
    """The low bits of a key or value that its lane takes."""
    return value & (1 << schemes.storage_bits(memory.accelerator.lanes.kinds[lane])) - 1


def clamp(value, lo, hi):
    return min(max(value, lo), hi)


def sat16(value):
    return clamp(value, -32768, 32767)


def signed_byte(value):
    return (int(value) & 255 ^ 128) - 128


def code16(word, index):
    """Little-endian s16 number `index` of a word's bytes."""
    value = int(word[2 * index]) | int(word[2 * index + 1]) << 8
    return value - 65536 if value >= 32768 else value


def operand(memory, ins, t, g, k, c, own=0):
    """x[k][c] of tile t and group g: `depth` numbers; with `private` those of chunk `own` of the tap."""
    a, pad = memory.accelerator, memory.scratchpad
    tap_chunks = 1 if ins.private else ins.tap_chunks
    if ins.mode == FetchMode.LINEAR:
        raw = list(pad[ins.src + t * ins.src_stride + g * ins.chunks + k, c])
    else:
        columns_of_taps = ins.taps_x if ins.mode == FetchMode.CONV else 1
        kx = k % columns_of_taps
        cc = k // columns_of_taps % tap_chunks + own
        ky = k // columns_of_taps // tap_chunks
        p = t * a.columns + c - ins.prefix
        oy, ox = p // ins.out_width, p % ins.out_width
        iy = oy * ins.stride_y + ky + ins.start_y
        outside = not 0 <= p < ins.positions - ins.prefix or not 0 <= iy < ins.height
        if ins.mode == FetchMode.CONV:
            ix = ox * ins.stride_x + kx + ins.start_x
            if outside or not 0 <= ix < ins.width:
                raw = [ins.pad_value] * a.depth
            else:
                q = iy * ins.width + ix
                row = ins.src + q // a.columns * ins.src_stride + g * ins.tap_chunks + cc
                raw = list(pad[row, q % a.columns])
        else:
            raw = []
            for i in range(a.depth):
                byte = ox * ins.stride_x + ins.start_x + cc * a.depth + i
                if outside or not 0 <= byte < ins.width:
                    raw.append(ins.pad_value)
                else:
                    row = ins.src + iy // a.columns * ins.src_stride + byte // a.depth
                    raw.append(pad[row, iy % a.columns, byte % a.depth])
    return [int(v) & 255 if ins.unsigned else signed_byte(v) for v in raw]


def taken(memory, ins, t, g, k, c):
    """What the lanes take of a chunk: `operand`, or with `private` a list of them."""
    if not ins.private:
        return operand(memory, ins, t, g, k, c)
    return [operand(memory, ins, t, g, k, c, own) for own in range(ins.tap_chunks)]


def accumulate(memory, ins, x, j, lane):
    """The accumulator of one lane and column; x[k] are its operands."""
    depth, partial = memory.accelerator.depth, []
    for k in range(ins.chunks):
        if ins.private:
            row = ins.weight + j * ins.weight_stride + k // depth
            own = j % ins.blocks * min(memory.accelerator.private_chunks, ins.tap_chunks) + lane // depth
            partial.append(memory.weight(row, lane, k % depth) * x[k][own][lane % depth])
            continue
        row = ins.weight + j * ins.weight_stride + k
        if ins.gather:
            row = ins.weight + int(memory.index[ins.index + j * ins.chunks + k])
        partial.append(sum(memory.weight(row, lane, i) * x[k][i] for i in range(memory.accelerator.depth)))
    return max(partial) if ins.maximum else sum(partial)


def execute(memory, ins):
    """Executes one instruction on `memory`."""
    a = memory.accelerator
    writes, maxima, moments = [], {}, {}
    for t in range(-(-ins.positions // a.columns)):
        for g in range(ins.groups):
            x = [[taken(memory, ins, t, g, k, c) for k in range(ins.chunks)] for c in range(a.columns)]
            for b in range(ins.blocks):
                j = g * ins.blocks + b
                last = (g + 1, b + 1) == (ins.groups, ins.blocks)
                for s in range(ins.steps - (ins.skip if last else 0)):
                    for i in range(a.drain << ins.plain):
                        for c in range(a.columns):
                            v, found = drain(memory, ins, t, x[c], j, s, i, c)
                            writes += found
                            total, squares = moments.get((t, c), (0, 0))
                            moments[t, c] = total + v, squares + v * v
                            o = (j * ins.steps + s) * (a.drain << ins.plain) + i
                            token = o % a.depth < a.depth // a.columns * a.columns
                            if o < ins.second_stride and token and t * a.columns + c < ins.positions:
                                place = ins.second_dst + t, c
                                maxima[place] = max(v, maxima.get(place, v))
    for target, place, value in writes:
        target[place] = value
    if ins.maxima:
        rows = {row for row, _ in maxima}
        kept = {place: v for place, v in memory.maxima.items() if place[0] not in rows}
        memory.maxima = kept | maxima
    if ins.moments:
        for (t, c), (total, squares) in moments.items():
            place = ins.second_dst + t, c
            before = memory.moments.get(place, (0, 0)) if ins.moments == Moments.ADD else (0, 0)
            live = before is not None and t * a.columns + c < ins.positions
            memory.moments[place] = (total + before[0], squares + before[1]) if live else None


def drain(memory, ins, t, x, j, s, i, c):
    """One output, and the places and values that it writes."""
    a = memory.accelerator
    param = ins.param + (j * ins.steps + s if ins.param_mode == ParamMode.CHANNEL else 0)
    unit, record = a.drain << ins.plain, i % a.drain
    o = (j * ins.steps + s) * unit + i
    p = t * a.columns + c
    if ins.param_mode == ParamMode.TOKEN:
        m, n = int(memory.scale_m[ins.param + t, c]), int(memory.scale_n[ins.param + t, c])
        constant = 1 << (n - 1)
        group = s
    else:
        m, n = int(memory.m[param, record]), int(memory.n[param, record])
        constant = int(memory.constant[param, record])
        group = int(memory.entry[param, i]) if ins.permute else s
    acc = accumulate(memory, ins, x, j, group * unit + i)
    v = (acc * m + constant) >> n
    if ins.table:
        half = 512 if ins.table_wide else 128
        v = int(memory.tables[ins.table_page, clamp(v, -half, half - 1) + half])
    if ins.residual:
        row = ins.residual_row + t * ins.residual_stride + o * 2 // a.depth
        r = code16(memory.scratchpad[row, c], o * 2 % a.depth // 2)
        v = sat16(sat16(v) + ((r * ins.residual_m + (1 << (ins.residual_n - 1))) >> ins.residual_n))
    v = clamp(v, ins.lo, ins.hi)

    live = p < ins.positions
    tokens = a.depth // a.columns * a.columns
    slot = p // tokens * a.depth + p % tokens
    writes = []
    if ins.destination == Destination.KEYS:
        tiles = a.depth // a.columns
        block, part = divmod(ins.dst_part + t, ins.dst_block)
        lane = part // tiles * a.depth + part % tiles * a.columns + c
        place = (ins.dst + block * ins.dst_stride + o // a.depth, lane, o % a.depth)
        writes.append((memory.patterns, place, stored(memory, lane, v if live else 0)))
    elif ins.destination == Destination.VALUES:
        block, part = divmod(ins.dst_part + j * ins.steps + s, ins.dst_block)
        lane = part * a.drain + i
        place = (ins.dst + block * ins.dst_stride + slot // a.depth, lane, slot % a.depth)
        writes.append((memory.patterns, place, stored(memory, lane, v if live else 0)))
    elif live:
        size = 2 if ins.wide else 1
        for byte in range(size):
            at = (ins.dst_channel + o) * size + byte
            row = ins.dst + t * ins.dst_stride + at // a.depth
            writes.append((memory.scratchpad, (row, c, at % a.depth), v >> 8 * byte & 255))
    if ins.second and live:
        q = (v * ins.second_m + ins.second_constant) >> ins.second_n
        q = clamp(q, ins.second_lo, ins.second_hi)
        row = ins.second_dst + t * ins.second_stride + o // a.depth
        writes.append((memory.scratchpad, (row, c, o % a.depth), q & 255))
    return v, writes
