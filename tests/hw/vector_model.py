"""docs/machine.md, VECTOR, as naive code on scratchpad rows; random legal instructions and contents."""

from __future__ import annotations

import numpy as np

from terrazzo.arch import numerics
from terrazzo.arch.accelerator import Accelerator
from terrazzo.arch.isa import Instruction, Opcode, VectorOp
from terrazzo.arch.layout import Layout

__all__ = [
    "INDEX_ENTRIES",
    "SOURCE_TILES",
    "expected",
    "keep_moments",
    "random_instruction",
    "random_memory",
    "random_tables",
    "readable_rows",
]


INDEX_ENTRIES = 64
SOURCE_TILES = 5
"""Tiles from which GATHER chooses."""


def readable_rows(a: Accelerator, f: Instruction) -> set[int]:
    """Rows of the operands: nothing else may be read."""
    tiles = -(-f.positions // a.columns)
    operands = [
        (f.src, f.src_stride, SOURCE_TILES if f.op == VectorOp.GATHER else tiles, 1 + source_is_wide(f))
    ]
    if f.op == VectorOp.MULTIPLY:
        operands.append((f.residual_row, f.residual_stride, 1 if f.broadcast else tiles, 1 + f.residual_wide))
    elif (f.residual and f.op == VectorOp.ELEMENTWISE) or (f.bias and f.op == VectorOp.SOFTMAX):
        operands.append((f.residual_row, f.residual_stride, tiles, 2))
    channels = 1 if f.op == VectorOp.COMPACT else f.channels
    return {
        row + tile * stride + i
        for row, stride, count, size in operands
        for tile in range(count)
        for i in range(-(-channels * size // a.depth))
    }


def source_is_wide(f: Instruction) -> bool:
    """Whether the input codes are 16 bits."""
    return bool(f.src_wide) or f.op in (VectorOp.LAYERNORM, VectorOp.SOFTMAX)


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


def keep_moments(a: Accelerator, memory, moments: np.ndarray, f: Instruction) -> None:
    """The sums and sums of squares that an instruction with `summed` reads, into `moments` (rows, columns, 2)."""
    layout = Layout(positions=f.positions, channels=f.channels, wide=True, stride=f.src_stride)
    for p, codes in enumerate(read_tensor(a, memory, f.src, layout).tolist()):
        moments[f.index + p // a.columns, p % a.columns] = sum(codes), sum(code * code for code in codes)


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


def compacted(a: Accelerator, memory, index, f: Instruction) -> dict[int, int]:
    """COMPACT: changes `index`; returns {register: count}."""
    count = 0
    for p in range(f.positions):
        word = memory[f.src + p // a.columns * f.src_stride][p % a.columns * a.depth :]
        if int.from_bytes(word[: 1 + f.src_wide].tobytes(), "little", signed=True) >= f.lo:
            index[f.index + count] = p
            count += 1
    return {f.count_register: count}


def gathered(a: Accelerator, memory, index, f: Instruction) -> None:
    """GATHER: whole pairs of bytes, then zeros up to the end of a step."""
    unit, length = 2 * a.vector, -(-f.channels * (1 + f.src_wide) // 2) * 2
    source = memory.copy()
    for i in range(f.positions):
        p = index[f.index + i]
        for byte in range(-(-length // unit) * unit):
            value = source[
                f.src + p // a.columns * f.src_stride + byte // a.depth,
                p % a.columns * a.depth + byte % a.depth,
            ]
            row = f.dst + i // a.columns * f.dst_stride + byte // a.depth
            memory[row, i % a.columns * a.depth + byte % a.depth] = value if byte < length else 0


def expected(a: Accelerator, memory, index, tables, norm_records, instruction: Instruction, maxima=None):
    """docs/machine.md, VECTOR: changes `memory` and `index`; returns {row: scales of the columns that are positions}
    and {register: value}."""
    f = instruction
    if f.op == VectorOp.COMPACT:
        return {}, compacted(a, memory, index, f)
    if f.op == VectorOp.GATHER:
        return gathered(a, memory, index, f) or ({}, {})
    layout = Layout(positions=f.positions, channels=f.channels, wide=source_is_wide(f), stride=f.src_stride)
    x = read_tensor(a, memory, f.src, layout)
    multiple, size, scales = a.vector, 1, {}
    if f.op in (VectorOp.ELEMENTWISE, VectorOp.MULTIPLY):
        size = 1 + f.dst_wide
        if f.op == VectorOp.MULTIPLY:
            count = 1 if f.broadcast else f.positions
            wide = bool(f.residual_wide)
            layout = Layout(positions=count, channels=f.channels, wide=wide, stride=f.residual_stride)
            product = x * read_tensor(a, memory, f.residual_row, layout)
            x = (product + (1 << 26)) % (1 << 27) - (1 << 26)
        if f.residual and f.op == VectorOp.ELEMENTWISE:
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
        mask = None
        if f.bias:
            layout = Layout(positions=f.positions, channels=f.channels, wide=True, stride=f.residual_stride)
            b = read_tensor(a, memory, f.residual_row, layout)
            mask = b > -32768
            x = np.minimum(np.maximum(x + b, -32768), 32767)
        tokens = [h for h in range(f.channels) if h % a.depth < a.depth // a.columns * a.columns]
        y = np.zeros((f.positions, f.channels), dtype=np.int64)
        if f.measured:
            for p in range(f.positions):
                largest = int(maxima[f.index + p // a.columns, p % a.columns])
                for h in tokens:
                    distance = largest - int(x[p, h])
                    y[p, h] = tables["exp"][distance if 0 <= distance < 255 else 255]
        else:
            y[:, tokens] = numerics.softmax_exp(
                x[:, tokens], tables["exp"], None if mask is None else mask[:, tokens]
            )
        multiple = a.depth
        scale = numerics.softmax_row_scale(y.sum(axis=-1), f.m, f.n, tables["recip"])
        for p in range(f.positions):
            scales.setdefault(f.param + p // a.columns, []).append((int(scale.m[p]), int(scale.n[p])))
    padded = np.zeros((f.positions, -(-f.channels // multiple) * multiple), dtype=np.int64)
    padded[:, : f.channels] = y
    write_codes(a, memory, f.dst, f.dst_stride, padded, size)
    return scales, {}


def random_instruction(
    rng, a: Accelerator, op: VectorOp, positions: int, channels: int, **given
) -> Instruction:
    """Legal fields; source, residual and destination each in a region of their own."""
    span = SOURCE_TILES if op == VectorOp.GATHER else -(-positions // a.columns)
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
        "residual_row": int(regions[2] + rng.integers(2)),
        "residual_stride": stride,
        "index": int(rng.integers(INDEX_ENTRIES - positions + 1)) if positions <= INDEX_ENTRIES else 0,
        "count_register": int(rng.integers(16)),
    }
    if op in (VectorOp.COMPACT, VectorOp.GATHER):
        # The threshold passes some of random codes; fields that these operations do not have are random.
        values |= {
            name: int(rng.integers(2)) for name in ("src_wide", "dst_wide", "table", "residual", "bias")
        }
        values |= {"lo": int(rng.integers(-300, 300)), "m": 50000, "n": 3, "constant": 12345}
    elif op in (VectorOp.ELEMENTWISE, VectorOp.MULTIPLY):
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
            "residual_wide": int(rng.integers(2)),
            "broadcast": int(rng.integers(2)),
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
        if span <= a.row_moments // 2:
            values |= {"summed": int(rng.integers(2)), "index": 0}
    else:
        values |= {"m": int(rng.integers(1 << 15, 1 << 16)), "n": int(rng.integers(1, 30))}
        values |= {"bias": int(rng.integers(2)), "table": 1}
        if span <= a.row_maxima and not given.get("bias", values["bias"]):
            values |= {"measured": int(rng.integers(2)), "index": int(rng.integers(a.row_maxima - span + 1))}
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
