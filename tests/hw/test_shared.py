"""Shared components: one module, the same behaviour with and without sharing, and no text changed by quick zeros."""

import re

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.sim import Simulator

from terrazzo.hw.shared import Shared
from terrazzo.hw.verilog import generate, module_bodies, module_instances
from terrazzo.hw.zeros import quick_zeros


class Delay(wiring.Component):
    """`o` is the inverse of `i` of some cycles ago."""

    def __init__(self, width: int, cycles: int, reset_less: bool = True):
        self.width = width
        self.cycles = cycles
        self.reset_less = reset_less
        super().__init__({"i": In(width), "o": Out(width)})

    def elaborate(self, platform):
        m = Module()
        value = self.i
        for cycle in range(1, self.cycles + 1):
            register = Signal(self.width, name=f"delayed_{cycle}", reset_less=self.reset_less)
            m.d.sync += register.eq(value)
            value = register
        m.d.comb += self.o.eq(~value)
        return m


class Inverse(wiring.Component):
    """Without a clock."""

    i: In(4)
    o: Out(4)

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.o.eq(~self.i)
        return m


class Twice(wiring.Component):
    """Two shared parts inside a shared part."""

    i: In(4)
    o: Out(4)

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Shared(Delay, 4, 1)
        m.submodules.second = second = Shared(Delay, 4, 1)
        m.d.comb += [first.i.eq(self.i), second.i.eq(first.o), self.o.eq(second.o)]
        return m


class Chain(wiring.Component):
    """Parts one after the other."""

    i: In(4)
    o: Out(4)

    def __init__(self, *parts):
        self.parts = parts
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        value = self.i
        for i, part in enumerate(self.parts):
            m.submodules[f"part_{i}"] = part
            m.d.comb += part.i.eq(value)
            value = part.o
        m.d.comb += self.o.eq(value)
        return m


class Cleared(wiring.Component):
    """A part under a reset inserter, as the engines are."""

    clear: In(1)
    i: In(4)
    o: Out(4)

    def __init__(self, part):
        self.part = part
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = ResetInserter(self.clear)(self.part)
        m.d.comb += [self.part.i.eq(self.i), self.o.eq(self.part.o)]
        return m


def test_one_module_for_equal_parameters():
    parts = [Shared(Delay, 4, 1), Shared(Delay, 4, 1), Shared(Delay, 4, 3), Shared(Inverse), Shared(Twice)]
    counts = module_instances(generate(Cleared(Chain(*parts)), "chain"))
    assert counts == {
        "chain": 1,
        "chain_part": 1,
        "chain_delay": 4,
        "chain_delay_2": 1,
        "chain_inverse": 1,
        "chain_twice": 1,
    }


@pytest.mark.parametrize("kind, parameters", [(Delay, (4, 2)), (Inverse, ())])
def test_text_of_module_is_that_of_an_unshared_one(kind, parameters):
    shared = module_bodies(generate(Chain(Shared(kind, *parameters)), "chain"))
    alone = module_bodies(generate(Chain(kind(*parameters)), "chain"))
    without_reset = re.sub(r"\brst, |, rst\b|  input rst;\n  wire rst;\n", "", alone["chain_part"])
    assert shared[f"chain_{kind.__name__.lower()}"].split("(", 1)[1] == without_reset.split("(", 1)[1]


def test_resets_are_refused():
    """A reset inserter would not reach the registers."""
    with pytest.raises(ValueError, match=r"^delay must have registers without reset only to be shared\.$"):
        generate(Chain(Shared(Delay, 4, 1, False)), "chain")


def test_simulation_has_the_component_itself():
    chain = Chain(Shared(Delay, 4, 2), Shared(Twice), Shared(Inverse))

    async def bench(ctx):
        seen = []
        for value in [*range(16), *[0] * 4]:
            ctx.set(chain.i, value)
            await ctx.tick()
            seen.append(ctx.get(chain.o))
        assert seen[3:] == [*range(16), 0]

    simulator = Simulator(chain)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


class Memories(wiring.Component):
    """A memory of zeros and another one."""

    address: In(3)
    data: Out(10)

    def elaborate(self, platform):
        m = Module()
        for name, init in (("zeros", []), ("ones", [1, 1, 1])):
            m.submodules[name] = rows = memory.Memory(shape=5, depth=7, init=init)
            read = rows.read_port()
            m.d.comb += [read.addr.eq(self.address), self.data.word_select(len(init) // 3, 5).eq(read.data)]
        return m


def test_quick_zeros_change_no_text():
    usual = rtlil.convert(Memories(), emit_src=False)
    with quick_zeros():
        quick = rtlil.convert(Memories(), emit_src=False)
    assert "$meminit_v2" in usual
    assert quick == usual
