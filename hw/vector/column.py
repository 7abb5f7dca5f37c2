"""The vector engine's datapath of one column: `vector` lanes through the stages of `steps`."""

from __future__ import annotations

from types import SimpleNamespace

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ...arch import isa
from ...arch.accelerator import Accelerator
from ...arch.numerics import LOGIT_BITS
from ...arch.options import missing
from ..decode import instruction_layout
from ..delay import delayed
from ..lanes.sums import groups, register, total
from ..ports import sums_layout
from ..product import Product
from ..requantize import Requantizer, saturate, shifted
from ..shared import Shared
from .layernorm import moments_layout
from .softmax import TOTAL_BITS
from .steps import STAGES, step_layout

__all__ = ["Column", "norm_layout"]

CENTRED_BITS = 28
"""LayerNorm's D * x - S."""
T_BITS = 18
"""LayerNorm's normalised value, and the scaled residual."""
ACC_BITS = 27
"""What is requantized: a code, LayerNorm's normalised value, or a product of two codes (modulo 2**27)."""
FIELDS = [
    "channels",
    "m",
    "n",
    "constant",
    "lo",
    "hi",
    "table",
    "table_wide",
    "residual",
    "residual_m",
    "residual_n",
    "bias",
    "broadcast",
]


def norm_layout(vector: int) -> data.ArrayLayout:
    """A row of LayerNorm parameters."""
    return data.ArrayLayout(data.StructLayout({"g": signed(16), "b": signed(48)}), vector)


class Column(wiring.Component):
    """Codes in, codes out, OUTPUT_STAGE cycles after the grant of a step's read; never stalls.

    `steps[s]` is the step in stage s. `word` belongs to stage 2, `norm` to stage 10, `outputs` to stage 21; the
    tables' values to stage 19 and their indices to stage 16. `codes` and `shared` belong to stage 3: codes that
    came from `word`, and those of the column that all columns use in a broadcast or GATHER. `kept` (stage 21) is
    COMPACT's comparison. With `taken` (stage 7) `maximum` becomes softmax's row maximum. `sums` is complete when the last step of a measuring
    pass is in stage 7, `softmax_total` when the last step of a writing pass is in stage 23. `moments[bank].sum` is
    used in stage 4, `.r` in 5, `.k` in 7.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        vector = accelerator.vector
        super().__init__(
            {
                "instruction": In(instruction_layout(isa.Opcode.VECTOR)),
                "steps": In(data.ArrayLayout(step_layout(accelerator), STAGES)),
                "word": In(accelerator.depth * 8),
                "codes": Out(data.ArrayLayout(signed(16), vector)),
                "shared": In(data.ArrayLayout(signed(16), vector)),
                "norm": In(norm_layout(vector)),
                "moments": In(data.ArrayLayout(moments_layout(), 2)),
                "sums": Out(sums_layout()),
                "softmax_total": Out(TOTAL_BITS),
                "unary_index": Out(data.ArrayLayout(10, vector)),
                "unary": In(data.ArrayLayout(signed(8), vector)),
                "exp_index": Out(data.ArrayLayout(8, vector)),
                "exp": In(data.ArrayLayout(8, vector)),
                "outputs": Out(data.ArrayLayout(16, vector)),
                "kept": Out(1),
                **({"taken": In(1), "maximum": In(signed(LOGIT_BITS))} if accelerator.row_maxima else {}),
            }
        )

    def elaborate(self, platform):
        m = Module()
        steps = self.steps
        # The instruction is stable long before its first step arrives: copies keep its fan-out short.
        self.now = now = SimpleNamespace(
            **{name: register(m, getattr(self.instruction, name), name) for name in FIELDS}
        )
        without = missing(self.accelerator, isa.Opcode.VECTOR, "op")
        for op in isa.VectorOp:
            name, none = op.name.lower(), op in without
            setattr(self, name, C(0) if none else register(m, self.instruction.op == op, name))
        if not self.accelerator.row_scales:
            now.bias = C(0)
        if not self.accelerator.table_pages:
            now.table = C(0)
        moments = {
            s: data.View(
                moments_layout(),
                Mux(steps[s].bank, *(m.as_value() for m in (self.moments[1], self.moments[0]))),
            )
            for s in (4, 5, 7)
        }

        read, held = self.read_codes(m)
        products = []
        for i, code in enumerate(read):
            factor = Mux(steps[3].measure, code, Mux(self.multiply, held[i], now.channels))
            factor = factor if self.accelerator.norm_rows else held[i]
            factors = register(m, code, f"factor_{i}_4"), register(m, factor, f"other_{i}_4")
            products.append(register(m, factors[0] * factors[1], f"product_{i}_5"))
        codes, masked = self.biased(m, read, held)
        peak = self.peak(m, codes) if self.accelerator.row_scales else None
        if self.accelerator.norm_rows:
            self.accumulate(m, codes, products)

        outputs = []
        for i, (code, product) in enumerate(zip(codes, products, strict=True)):
            # The next step's second operand comes to `held` in stage 5 at the earliest.
            residual = register(m, held[i], f"residual_{i}_5")
            code = register(m, Mux(self.multiply, product[:ACC_BITS].as_signed(), code), f"code_{i}_6")
            t = self.scaled(m, i, product, residual, moments)
            for stage in range(7, 11):
                code = register(m, code, f"code_{i}_{stage}")
                if stage == 8 and self.accelerator.row_scales:
                    self.exponent_index(m, i, peak, code[:16].as_signed(), masked[i])
            outputs.append(self.requantized(m, i, code, t))
        m.d.comb += [self.outputs[i].eq(output) for i, output in enumerate(outputs)]
        if self.accelerator.row_scales:
            self.accumulate_exponentials(m, outputs)
        return m

    def read_codes(self, m: Module) -> tuple[list[Value], list[Value]]:
        """Codes (0 where absent) and those of the second operand, both in stage 3."""
        a, step = self.accelerator, self.steps[2]
        bits = a.vector * 8
        slots = [self.word.word_select(slot, bits) for slot in range(a.depth // a.vector)]
        low, high = Signal(bits), Signal(bits)
        m.d.comb += [low.eq(Array(slots)[step.slot]), high.eq(Array(slots[1::2])[step.slot[1:]])]
        pair = Cat(low, high)
        codes, second = [], []
        for i in range(a.vector):
            code = Mux(step.wide, pair.word_select(i, 16).as_signed(), low.word_select(i, 8).as_signed())
            code = register(m, Mux(step.present[i], code, 0), f"code_{i}_3")
            held = Signal(signed(16), name=f"residual_{i}", reset_less=True)
            chosen = Mux(self.now.broadcast, self.shared[i], code)
            m.d.sync += held.eq(Mux(self.steps[3].residual, chosen, held))
            m.d.comb += self.codes[i].eq(code)
            codes.append(code)
            second.append(held)
        return codes, second

    def biased(self, m: Module, codes: list[Value], biases: list[Value]) -> tuple[list[Value], list[Value]]:
        """Softmax's logits, GATHER's codes or the codes as they are, in stage 5; which are masked, in stage 8."""
        results, masked = [], []
        for i, (code, bias) in enumerate(zip(codes, biases, strict=True)):
            hides = register(m, self.now.bias & (bias == -32768), f"masked_{i}_4")
            total = Mux(self.gather, self.shared[i], code + Mux(self.now.bias, bias, 0))
            total = register(m, total[:17].as_signed(), f"total_{i}_4")
            results.append(register(m, Mux(hides, -32768, saturate(total, 16)), f"code_{i}_5"))
            for stage in range(5, 9):
                hides = register(m, hides, f"masked_{i}_{stage}")
            masked.append(hides)
        return results, masked

    def peak(self, m: Module, codes: list[Value]) -> Signal:
        """Softmax's row maximum, in stage 8: the tree of comparisons has a register in front of its last one."""
        step = self.steps[7]
        present = self.steps[5].present
        values = [Mux(present[i], code, -32768) for i, code in enumerate(codes)]
        while len(values) > 2:
            values = [self.larger(*pair) for pair in groups(values, 2)]
        values = [register(m, value, f"best_{i}_6") for i, value in enumerate(values)]
        best = register(m, self.larger(*values), "best_7")
        peak = Signal(signed(16), reset_less=True)
        higher = step.valid & step.measure & (step.first | (best > peak))
        if self.accelerator.row_maxima:
            with m.If(self.taken | higher):
                m.d.sync += peak.eq(Mux(self.taken, self.maximum, best))
        else:
            m.d.sync += peak.eq(Mux(higher, best, peak))
        return peak

    def larger(self, first: Value, *second: Value) -> Value:
        """The larger one of one or two values."""
        return Mux(first > second[0], first, second[0]) if second else first

    def accumulate(self, m: Module, codes: list[Value], products: list[Value]) -> None:
        """LayerNorm's sums: in stage 6 of one step, complete in stage 7."""
        step = self.steps[6]
        for name, values in (("sum", codes), ("squares", products)):
            sums = self.sums[name]
            addend = register(m, total(values), f"{name}_6")
            accumulator = Signal(Value.cast(sums).shape(), name=name, reset_less=True)
            following = Mux(step.first, 0, accumulator) + addend
            m.d.sync += accumulator.eq(Mux(step.valid & step.measure, following, accumulator))
            m.d.comb += sums.eq(accumulator)

    def exponent_index(self, m: Module, i: int, peak: Value, code: Value, masked: Value) -> None:
        """min(peak - code, 255), 255 where masked, from stage 8 to stage 16."""
        distance = peak - code
        index = Mux(distance[8:].any() | masked, 255, distance[:8])
        for stage in range(9, 17):
            index = register(m, index, f"exp_index_{i}_{stage}")
        m.d.comb += self.exp_index[i].eq(index)

    def scaled(self, m: Module, i: int, product: Value, residual: Value, moments: dict) -> Value:
        """LayerNorm's t, or the residual at the output's scale, before the register of stage 11."""
        now, norms = self.now, self.accelerator.norm_rows > 0
        m.submodules[f"scaling_{i}"] = scaling = Shared(Product, CENTRED_BITS if norms else 16, 17)
        value, scale, shift = residual, now.residual_m, now.residual_n
        if norms:
            mean = register(m, moments[4].sum, f"sum_{i}_5")
            centred = (product - mean)[:CENTRED_BITS].as_signed()
            value = Mux(self.layernorm, centred, value)
            scale = Mux(self.layernorm, moments[5].r, scale)
            shift = Mux(self.layernorm, moments[7].k, shift)
        m.d.comb += [
            scaling.a.eq(register(m, value, f"scaled_{i}_6")),
            scaling.b.eq(register(m, scale, f"scale_{i}_6")),
        ]
        shift = register(m, (shift - 1)[:6], f"shift_{i}_8")
        halves = shifted(scaling.p, shift, T_BITS + 2, lambda value: delayed(m, value, 1))
        return saturate((register(m, halves, f"scaled_{i}_10") + 1) >> 1, T_BITS)

    def requantized(self, m: Module, i: int, code: Value, t: Value) -> Value:
        """Stages 10 to 21: requantizer, table or residual, clamp."""
        now, norm, step = self.now, self.norm[i], self.steps[20]
        requantizer = Shared(Requantizer, ACC_BITS)
        m.submodules[f"requantizer_{i}"] = requantizer
        operands = {"acc": (t, code), "m": (norm.g, now.m), "constant": (norm.b, now.constant)}
        for name, values in operands.items():
            value = Mux(self.layernorm, *values) if self.accelerator.norm_rows else values[1]
            operands[name] = register(m, value, f"{name}_{i}_11")
        m.d.comb += [
            requantizer.acc.eq(operands["acc"]),
            requantizer.m.eq(operands["m"]),
            requantizer.constant.eq(register(m, operands["constant"], f"constant_{i}_12")),
            requantizer.n.eq(now.n),
        ]
        for stage in range(11, 17):
            t = register(m, t, f"t_{i}_{stage}")
        v = requantizer.v
        if self.accelerator.table_pages:
            narrow, wide = Cat(saturate(v, 8)), Cat(saturate(v, 10))
            m.d.comb += self.unary_index[i].eq(Mux(now.table_wide, wide ^ 512, narrow ^ 128))
        v = Mux(now.residual & self.elementwise, saturate(v + t, 16), v)
        for stage in range(17, 20):
            v = register(m, v, f"v_{i}_{stage}")
        v = register(m, Mux(self.softmax, self.exp[i], Mux(now.table, self.unary[i], v)), f"v_{i}_20")
        below = v < now.lo
        if i == 0 and self.accelerator.index_rows:
            m.d.comb += self.kept.eq(register(m, ~below, "kept_21"))
        clamped = Mux(below, now.lo, Mux(v > now.hi, now.hi, v))
        return register(m, Mux(step.present[i], clamped, 0)[:16], f"output_{i}_21")

    def accumulate_exponentials(self, m: Module, outputs: list[Value]) -> None:
        """Softmax's sum of E: in stage 22 of one step, complete in stage 23."""
        step = self.steps[22]
        addend = register(m, total([output[:8] for output in outputs]), "exponentials_22")
        accumulator = Signal(TOTAL_BITS, reset_less=True)
        following = Mux(step.first, 0, accumulator) + addend
        m.d.sync += accumulator.eq(Mux(step.valid & ~step.measure, following, accumulator))
        m.d.comb += self.softmax_total.eq(accumulator)
