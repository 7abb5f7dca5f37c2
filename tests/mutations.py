"""Deliberate bugs, each of which some test must catch."""

from __future__ import annotations

import dataclasses

__all__ = ["MUTATIONS", "Mutation"]


@dataclasses.dataclass(frozen=True)
class Mutation:
    """Replace `old` (text that occurs once, or a byte range) in `path` by `new`; `tests` must fail."""

    name: str
    path: str
    old: str | tuple[int, int]
    new: str
    tests: tuple[str, ...]


_FETCH = ("tests/hw/test_fetch.py",)
_LANES = ("tests/hw/test_lanes.py",)
_MATRIX = ("tests/hw/test_matrix.py",)
_VECTOR = ("tests/hw/test_vector.py",)
_LOAD = ("tests/hw/test_load.py",)
_FORMAL = ("tests/hw/test_formal.py",)
_INDIRECT = ("tests/hw/test_indirect.py",)
_REFERENCE = ("tests/sim/test_reference.py",)
_NUMERICS = ("tests/arch/test_numerics.py",)
_PUBLISHED = ("tests/arch/test_published.py",)

MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "fetch: padding one byte short at the end of an image row",
        "hw/fetch.py",
        "high.eq(ins.width + a.depth - place.x)",
        "high.eq(ins.width + a.depth + 1 - place.x)",
        _FETCH,
    ),
    Mutation(
        "fetch: joined bytes not shifted",
        "hw/align.py",
        "shifted.eq(Cat(previous, word) >> (element.shift << 3))",
        "shifted.eq(word)",
        _FETCH,
    ),
    Mutation(
        "fetch: the row below the image is read",
        "hw/walk.py",
        "[:_Y_BITS] < ins.height)",
        "[:_Y_BITS] <= ins.height)",
        _FETCH,
    ),
    Mutation(
        "fetch: the operand buffer is overwritten before it is free",
        "hw/fetch.py",
        "[: len(walk.index)] + step <= self.accelerator.operand_chunks",
        "[: len(walk.index)] <= self.accelerator.operand_chunks",
        _FETCH,
    ),
    Mutation(
        "lanes: the offset of the lower fields stays in their sum",
        "hw/lanes/fixed8.py",
        "[Cat(field[:-1], ~field[-1]).as_signed() for field in lower]",
        "[field.as_signed() for field in lower]",
        _LANES,
    ),
    Mutation(
        "lanes: maximum becomes minimum",
        "hw/lanes/rows.py",
        "larger = chunk > accumulator",
        "larger = chunk < accumulator",
        _LANES,
    ),
    Mutation(
        "array: operands always signed",
        "hw/array.py",
        "Cat(code, code[7] & ~self.chunk.unsigned)",
        "Cat(code, code[7])",
        _MATRIX,
    ),
    Mutation(
        "array: low digits of operands are signed",
        "hw/array.py",
        "(high & code[8]).replicate(5)",
        "Mux(high, code[8], code[3]).replicate(5)",
        _MATRIX,
    ),
    Mutation(
        "compute: operands are freed when their high digits are taken",
        "hw/compute.py",
        "with m.If(block_last & pass_last):",
        "with m.If(block_last):",
        ("tests/sim/test_timing_matrix.py",),
    ),
    Mutation(
        "compute: low digits meet the weights of the next block",
        "hw/compute.py",
        "[shift.eq(1), low.eq(1), row.eq(block_row)]",
        "[shift.eq(1), low.eq(1)]",
        _MATRIX,
    ),
    Mutation(
        "array: lanes that need no digits add operands twice",
        "hw/array.py",
        "chunk.first if row.digits or digits is None else chunk.first | chunk.shift",
        "chunk.first",
        _MATRIX,
    ),
    Mutation(
        "widths: blocks of digits are taken to need no more time",
        "compiler/rows.py",
        "max(chunks << self.digits, self.steps)",
        "max(chunks, self.steps)",
        ("tests/compiler/test_widths.py",),
    ),
    Mutation(
        "drain: rounds toward 0",
        "hw/drain.py",
        "p7 = delayed(m, shifted(p5_total, self.p5_n, 16), 2)",
        "p7 = delayed(m, shifted(p5_total + Mux(p5_total < 0, (1 << self.p5_n) - 1, 0), self.p5_n, 16), 2)",
        ("tests/hw/test_drain.py",),
    ),
    Mutation(
        "drain: the residual is rounded down",
        "hw/drain.py",
        "p7_scaled = register(p6_scaled + self.p6_residual_round)",
        "p7_scaled = register(p6_scaled)",
        ("tests/hw/test_drain.py",),
    ),
    Mutation(
        "drain: row scales without rounding",
        "hw/drain.py",
        "p4_rounds = [delayed(m, ((1 << scale.n) >> 1)[:48], 2)",
        "p4_rounds = [delayed(m, ((1 << scale.n) >> 48)[:48], 2)",
        _MATRIX,
    ),
    Mutation(
        "drain: second output to the first one's row",
        "hw/drain.py",
        "self.write.row.eq(Mux(p14_valid, p14_second_row, p13_row))",
        "self.write.row.eq(p13_row)",
        _MATRIX,
    ),
    Mutation(
        "weights: Fixed-4 lanes take the high bits of keys and values",
        "hw/weights.py",
        "self.drain.values[c][i][:bits]",
        "self.drain.values[c][i][8 - bits :]",
        _MATRIX,
    ),
    Mutation(
        "drain: keys and values begin at the first lanes of a block",
        "hw/drain.py",
        'Mux(fresh, field("dst_part"), part)',
        "Mux(fresh, 0, part)",
        _MATRIX,
    ),
    Mutation(
        "drain: values of a tile go on behind those of the tile before",
        "hw/drain.py",
        "restart = Mux(keys, end, tile_end)",
        "restart = end",
        _MATRIX,
    ),
    Mutation(
        "widths: lanes with four products take every operand",
        "compiler/widths.py",
        "if not within(operand, (NARROW[0] + 1, NARROW[1])):",
        "if False:",
        ("tests/sim/test_dynamic.py",),
    ),
    Mutation(
        "drain: permutation ignored",
        "hw/drain.py",
        'entry = Mux(self.field(2, "permute"), record.entry, p2_group)',
        "entry = p2_group",
        _MATRIX,
    ),
    Mutation(
        "drain: plain outputs take a group of lanes twice",
        "hw/drain.py",
        "p2_step << 1 | 1",
        "p2_step << 1",
        _MATRIX,
    ),
    Mutation(
        "compute: the last block of every group skips steps",
        "hw/compute.py",
        "Mux(tile_end, step_top_end, step_top)",
        "Mux(block_last, step_top_end, step_top)",
        _MATRIX,
    ),
    Mutation(
        "compute: no distance between blocks",
        "hw/compute.py",
        "~(chunk_last & pass_last & waits)",
        "~(chunk_last & pass_last & waits & (countdown > 1))",
        _MATRIX,
    ),
    Mutation(
        "layernorm: moments used a cycle early",
        "hw/vector/steps.py",
        "LAYERNORM_LATENCY = 8",
        "LAYERNORM_LATENCY = 7",
        _VECTOR,
    ),
    Mutation(
        "layernorm: epsilon forgotten",
        "hw/vector/layernorm.py",
        "(scaled - square + self.eps)",
        "(scaled - square)",
        _VECTOR,
    ),
    Mutation(
        "softmax: the reciprocal is not rounded",
        "hw/vector/softmax.py",
        "(product + (1 << 15)) >> 16",
        "product >> 16",
        _VECTOR,
    ),
    Mutation(
        "load: the last line of a row is a line early",
        "hw/load.py",
        "last_line.eq(position == transfer.last_line)",
        "last_line.eq((position + 1 == transfer.last_line) | (transfer.last_line == 0))",
        _LOAD,
    ),
    Mutation(
        "load: bursts without room in the buffer",
        "hw/lines.py",
        "self.room.eq((self.room + self.taken) - length)",
        "self.room.eq(self.room)",
        _LOAD,
    ),
    Mutation(
        "lines: the ports' beats in the wrong order",
        "hw/lines.py",
        "Cat(beat.data for beat in beats)",
        "Cat(beat.data for beat in reversed(beats))",
        _LOAD,
    ),
    Mutation(
        "lines: a line leaves before all ports have its beat",
        "hw/lines.py",
        "read.eq(_all(filled) &",
        "read.eq(filled[0] &",
        _FORMAL,
    ),
    Mutation(
        "bursts: one that begins in the middle of a block is a line too long",
        "hw/bursts.py",
        "space.eq(burst_beats - index)",
        "space.eq(burst_beats - index + (index == 5))",
        _FORMAL,
    ),
    Mutation(
        "store: a burst is answered by one port",
        "hw/store.py",
        "answered.eq(kept.all())",
        "answered.eq(kept.any())",
        ("tests/hw/test_top.py::test_bus_error",),
    ),
    Mutation(
        "semaphores: waiting takes nothing",
        "hw/semaphores.py",
        "count.eq(count - 1), positive.eq(count > 1)",
        "count.eq(count), positive.eq(1)",
        ("tests/hw/test_top.py::test_semaphores",),
    ),
    Mutation(
        "program: half of the hash unchecked",
        "hw/program.py",
        "wrong_hash = Cat(hash_low, hash_high) != accelerator.hash",
        "wrong_hash = hash_low != accelerator.hash & 0xFFFF_FFFF",
        ("tests/hw/test_top.py::test_program_errors",),
    ),
    Mutation(
        "compiler: rows on lanes of another bank",
        "compiler/rows.py",
        "lanes[row] = source.pop(0) * a.drain + bank",
        "lanes[row] = source.pop(0) * a.drain",
        ("tests/compiler/test_rows.py",),
    ),
    Mutation(
        "compiler: stride of blocks one row short",
        "compiler/matrix.py",
        '"weight_stride": 0 if shared else weights.shape[1]',
        '"weight_stride": 0 if shared else max(1, weights.shape[1] - 1)',
        ("tests/compiler/test_build.py",),
    ),
    Mutation(
        "compiler: overwriting does not wait for readers",
        "compiler/schedule.py",
        "access.first < first + span.rows and first < access.end and (writes or access.writes)",
        "access.first < first + span.rows and first < access.end and access.writes",
        ("tests/compiler/test_build.py",),
    ),
    Mutation(
        "compiler: streamed data loaded after its first use",
        "compiler/stream.py",
        "merged += [*before.get(index, []), item.reading(found) if found else item]",
        "merged += [item.reading(found) if found else item, *before.get(index, [])]",
        ("tests/compiler/test_build.py::test_small_memories_are_streamed",),
    ),
    Mutation(
        "compiler: a band lacks the last row of its windows",
        "compiler/cuts.py",
        "(rows[1] - 1) * stride - top + kernel",
        "(rows[1] - 1) * stride - top + kernel - 1",
        ("tests/compiler/test_spill.py::test_bands_avoid_spills",),
    ),
    Mutation(
        "compiler: all bands of a tensor go to the same place in DRAM",
        "compiler/bands.py",
        "self.store(name, place, first * whole.width, index)",
        "self.store(name, place, 0, index)",
        ("tests/compiler/test_spill.py::test_smaller_and_smaller",),
    ),
    Mutation(
        "compiler: a gather takes the second piece of its input for the first",
        "compiler/bands.py",
        "            at += (stop - begin) * read.width\n",
        "",
        ("tests/compiler/test_pieces.py::test_swin_on_smaller_and_smaller_machines",),
    ),
    Mutation(
        "compiler: the biases of the first windows in every band",
        "compiler/bands.py",
        "bias[begin:stop] if len(bias) > 1 else bias",
        "bias[: stop - begin]",
        ("tests/compiler/test_pieces.py::test_swin_on_smaller_and_smaller_machines",),
    ),
    Mutation(
        "compiler: gaps in a memory forget long neighbours",
        "compiler/allocate.py",
        "at = max(at, end)",
        "at = end",
        ("tests/compiler/test_build.py",),
    ),
    Mutation(
        "reference: pooling pads with 0",
        "sim/reference.py",
        "windows = _windows(pixels, operator, operator.kernel, graph.tensor(operator.input).zero_point)",
        "windows = _windows(pixels, operator, operator.kernel, 0)",
        _REFERENCE,
    ),
    Mutation(
        "reference: queries attend to themselves",
        "sim/reference.py",
        "_matmul(q, k.swapaxes(-1, -2))",
        "_matmul(q, q.swapaxes(-1, -2))",
        _REFERENCE,
    ),
    Mutation(
        "numerics: requantize rounds up",
        "arch/numerics.py",
        "return clamp((acc * m + constant) >> n, lo, hi)",
        "return clamp(-(-(acc * m + constant) >> n), lo, hi)",
        _NUMERICS,
    ),
    Mutation(
        "numerics: softmax's h one bit late",
        "arch/numerics.py",
        "h = (p >= 1 << 31)",
        "h = (p >= 1 << 32)",
        _NUMERICS,
    ),
    Mutation(
        "numerics: input rounds half away from 0",
        "arch/numerics.py",
        "np.rint(np.asarray(x, dtype=np.float64) / scale)",
        "np.floor(np.asarray(x, dtype=np.float64) / scale + 0.5)",
        _NUMERICS,
    ),
    Mutation(
        "isa: negative fields accepted one too low",
        "arch/isa.py",
        "return -(1 << (self.bits - 1)) if self.signed else 0",
        "return -(1 << (self.bits - 1)) - 1 if self.signed else 0",
        ("tests/arch/test_isa.py",),
    ),
    Mutation(
        "operands: registers are divided rounding down",
        "hw/operands.py",
        "((s2_value >> s2_shift) + (rest != 0))",
        "(s2_value >> s2_shift)",
        _INDIRECT,
    ),
    Mutation(
        "operands: a sum may exceed its field",
        "hw/operands.py",
        "s5_sum > f.hi for f",
        "s5_sum > 2 * f.hi for f",
        _INDIRECT,
    ),
    Mutation(
        "operands: slots of one field do not add up",
        "sim/functional.py",
        "values[field.name] = values.get(field.name, 0) + amount",
        "values[field.name] = i.values.get(field.name, 0) + amount",
        _INDIRECT,
    ),
    Mutation(
        "dispatch: a machine without operand slots ignores them",
        "hw/dispatch.py",
        "legal &= ~fields.slots",
        "legal &= 1",
        _INDIRECT,
    ),
    Mutation(
        "items: the last item is as long as the others",
        "hw/items.py",
        "Mux(last, ins.rows, ins.item_rows)",
        "ins.item_rows",
        _INDIRECT,
    ),
    Mutation(
        "index: a row's entries in the wrong order",
        "hw/index.py",
        "read.data.word_select(shown, isa.INDEX_BITS)",
        "read.data.word_select(~shown, isa.INDEX_BITS)",
        _INDIRECT,
    ),
    Mutation(
        "compute: gathered weights begin again with every block",
        "hw/compute.py",
        "Mux(chunk_last & tile_end, ins.index, entry + 1)",
        "Mux(chunk_last, ins.index, entry + 1)",
        _MATRIX,
    ),
    Mutation(
        "drain: the second output is moved by dst_channel too",
        "hw/drain.py",
        "p14_output = delayed(m, p11_output, 3)",
        "p14_output = delayed(m, p13_output, 1)",
        _MATRIX,
    ),
    Mutation(
        "timing: the first item a cycle early",
        "sim/timing/memory.py",
        "s[_ITEM] = _LOOK, start,",
        "s[_ITEM] = _FOUND, start,",
        _INDIRECT,
    ),
    Mutation(
        "timing: rows of the index memory do not wait for COMPACT",
        "sim/cycle.py",
        "not (target == _INDEX and compacting)",
        "True",
        ("tests/sim/test_indirect.py",),
    ),
    Mutation(
        "timing: the array answers a cycle early",
        "sim/timing/matrix.py",
        "_LANES_LATENCY = 8",
        "_LANES_LATENCY = 7",
        ("tests/sim/test_timing_matrix.py",),
    ),
    Mutation(
        "timing: row scales a cycle early",
        "sim/timing/vector.py",
        "_SOFTMAX_LATENCY = 22",
        "_SOFTMAX_LATENCY = 21",
        ("tests/test_tiny.py",),
    ),
    Mutation(
        "published: log2(e) as 1.375",
        "arch/published.py",
        "(codes >> 1) - (codes >> 4)",
        "(codes >> 1) - (codes >> 3)",
        _PUBLISHED,
    ),
    Mutation(
        "published: ShiftGELU refused one exponent late",
        "arch/published.py",
        "reached >= -_SHIFT_GELU_BITS *",
        "reached >= -(_SHIFT_GELU_BITS + 1) *",
        _PUBLISHED,
    ),
    Mutation(
        "order: rows may be read before they are written",
        "compiler/order.py",
        "(writes or wrote)",
        "writes",
        ("tests/compiler/test_parts.py",),
    ),
    Mutation(
        "compute: a private chunk frees one place of the operand buffer",
        "hw/compute.py",
        "            step = Mux(ins.private, private, 1)\n            present",
        "            step = 1\n            present",
        _MATRIX,
    ),
    Mutation(
        "layout: tokens lie without gaps where columns do not divide a word",
        "arch/layout.py",
        "return word * accelerator.depth + within",
        "return np.arange(count)",
        ("tests/compiler/test_parts.py",),
    ),
)
