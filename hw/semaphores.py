"""Semaphores: the order between the engines."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator

__all__ = ["Semaphores", "foreign_waits"]


def foreign_waits(engine: isa.Engine) -> int:
    """Mask of the semaphores on which other engines wait: illegal in `engine`'s instructions."""
    return sum(1 << isa.semaphore(p, c) for p in isa.Engine for c in isa.Engine if c != engine)


class Semaphores(wiring.Component):
    """One counter for every ordered pair of engines; wide enough for every instruction of a program.

    Bit e of `start` takes from the semaphores in `wait_e`, bit e of `done` gives to those in `signal_e`; a change shows
    in `ok` in the next cycle. Bit e of `ok`: all semaphores in `wait_e` are positive. `clear` sets all to 0.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        engines = len(isa.Engine)
        super().__init__(
            {
                "clear": In(1),
                "start": In(engines),
                "done": In(engines),
                "ok": Out(engines),
                **{f"wait_{e}": In(isa.SEMAPHORES) for e in range(engines)},
                **{f"signal_{e}": In(isa.SEMAPHORES) for e in range(engines)},
            }
        )

    def elaborate(self, platform):
        m = Module()
        for consumer in isa.Engine:
            wait, satisfied = getattr(self, f"wait_{int(consumer)}"), []
            for producer in isa.Engine:
                bit = isa.semaphore(producer, consumer)
                count = Signal(range(self._accelerator.instructions + 1), name=f"count_{bit}")
                up = self.done[producer] & getattr(self, f"signal_{int(producer)}")[bit]
                down = self.start[consumer] & wait[bit]
                positive = Signal(name=f"positive_{bit}")
                with m.If(self.clear):
                    m.d.sync += [count.eq(0), positive.eq(0)]
                with m.Elif(up & ~down):
                    m.d.sync += [count.eq(count + 1), positive.eq(1)]
                with m.Elif(down & ~up):
                    m.d.sync += [count.eq(count - 1), positive.eq(count > 1)]
                satisfied.append(~wait[bit] | positive)
            m.d.comb += self.ok[consumer].eq(Cat(satisfied).all())
        return m
