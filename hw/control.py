"""Control: registers, start queue, counters, faults."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa, registers
from ..arch.accelerator import VERSION, Accelerator
from ..arch.registers import Cause
from . import axilite
from .bursts import FAULT, REGIONS
from .delay import delayed
from .queue import Queue

__all__ = ["FAULT_SOURCES", "STARTS", "Control"]

STARTS = 2
"""Starts that wait behind the running one."""
FAULT_SOURCES = ("load", "store", "program")
"""Blocks with a fault port, in the order of precedence."""


class Control(wiring.Component):
    """The host's view of the machine, and the state that the other blocks follow.

    IDLE (takes starts from the queue, or a LOAD), LOADING, RUNNING, HALTED after the first fault, FAILED once nothing is
    outstanding (`quiet`). `halt` is high in the last two; `clear`, a register, resets the engines a cycle later, the first one in IDLE.
    `run_start` is the first cycle of a run, in which `entry` is valid; `run_end` (from the dispatch) is its last. CYCLES
    is the distance of the two; the engines' counters count the cycles after `run_start`.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        super().__init__(
            {
                "axi": Out(wiring.Signature(axilite.PORTS)),
                "irq": Out(1),
                "regions": Out(REGIONS),
                "run_start": Out(1),
                "entry": Out(17),
                "run_end": In(1),
                "halt": Out(1),
                "clear": Out(1),
                "quiet": In(1),
                "illegal": In(1),
                "index": In(17),
                "dispatched": In(32),
                "program_load": Out(1),
                "program_address": Out(32),
                "program_busy": In(1),
                "program_loaded": In(1),
                "program_count": In(17),
                "busy": In(len(isa.Engine)),
                "stalled": In(len(isa.Engine)),
                **{f"{name}_fault": In(FAULT) for name in FAULT_SOURCES},
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.slave = slave = axilite.Slave()
        wiring.connect(m, wiring.flipped(self.axi), slave.axi)
        values = {register.name: Signal(32, name=register.name.lower()) for register in registers.REGISTERS}

        # Register accesses.
        written = {name: Signal(name=f"{name.lower()}_written") for name in values}
        with m.Switch(slave.write_offset):
            for register in registers.REGISTERS:
                with m.Case(register.offset):
                    m.d.comb += written[register.name].eq(slave.write)
        shown = []
        for register in registers.REGISTERS:
            read = Signal(name=f"{register.name.lower()}_read")
            m.d.sync += read.eq(slave.read_offset == register.offset)
            shown.append(Mux(read, values[register.name], 0))
        m.d.comb += slave.read_data.eq(reduce(or_, shown))
        for register in registers.REGISTERS:
            if register.access == "rw" and register.name != "CONTROL":
                value = values[register.name]
                with m.If(written[register.name]):
                    m.d.sync += value.eq((value & ~slave.write_mask) | (slave.write_data & slave.write_mask))
        commanded = {
            bit: delayed(
                m,
                written["CONTROL"] & (slave.write_data & slave.write_mask & int(bit)).any(),
                1,
                reset_less=False,
            )
            for bit in registers.Control
        }

        # Starts wait with the bases that they found.
        start_layout = data.StructLayout({"entry": 32, "input": 32, "output": 32})
        m.submodules.starts = starts = Queue(start_layout, STARTS)
        queued, next_start = starts.o.valid, starts.o.payload
        running = Signal(start_layout)
        idle, working, counting = Signal(), Signal(), Signal()
        failing, take, clear_wanted = Signal(), Signal(), Signal()
        ports = [getattr(self, f"{name}_fault") for name in FAULT_SOURCES]
        failed = values["CAUSE"] != Cause.NONE
        run_end = self.run_end & ~self.halt
        # Of the next start, from the second cycle on in which it is the next one.
        known, fits = Signal(), delayed(m, next_start.entry < self.program_count, 1)
        m.d.sync += known.eq(queued & ~starts.o.ready)
        load_program = Signal()
        m.d.comb += [
            starts.i.valid.eq(commanded[registers.Control.START] & ~failed),
            starts.i.payload.entry.eq(values["ENTRY"]),
            starts.i.payload.input.eq(values["INPUT_BASE"]),
            starts.i.payload.output.eq(values["OUTPUT_BASE"]),
            starts.o.ready.eq(take | failed),
            self.entry.eq(next_start.entry),
        ]
        for region in isa.Region:
            base = {isa.Region.INPUT: running.input, isa.Region.OUTPUT: running.output}.get(
                region, values[f"{region.name}_BASE"]
            )
            m.d.comb += [
                self.regions[region].base.eq(base),
                self.regions[region].limit.eq(values[f"{region.name}_LIMIT"]),
            ]

        # States.
        load = commanded[registers.Control.LOAD] & ~failed
        halted = delayed(m, self.halt, 2, reset_less=False)  # The engines know, so `quiet` stays.
        m.d.comb += self.program_address.eq(values["PROGRAM"])
        m.d.sync += [self.halt.eq((self.halt | failing) & ~self.clear), self.program_load.eq(load_program)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += idle.eq(~queued)
                with m.If(queued & known):
                    m.d.comb += [take.eq(1), self.run_start.eq(fits)]
                    m.d.sync += running.eq(next_start)
                    m.next = "RUNNING"
                with m.Elif(~queued & load):
                    m.d.comb += load_program.eq(1)
                    m.next = "LOADING"
                with m.If(failing):
                    m.next = "HALTED"
            with m.State("LOADING"):
                m.d.comb += working.eq(1)
                with m.If(failing):
                    m.next = "HALTED"
                with m.Elif(~self.program_load & ~self.program_busy):
                    m.next = "IDLE"
            with m.State("RUNNING"):
                m.d.comb += [working.eq(1), counting.eq(1)]
                with m.If(run_end):
                    m.next = "IDLE"
                with m.If(failing):
                    m.next = "HALTED"
            with m.State("HALTED"):
                m.d.comb += working.eq(1)
                with m.If(halted & self.quiet & ~self.program_busy):
                    m.next = "FAILED"
            with m.State("FAILED"), m.If(clear_wanted):
                m.d.sync += self.clear.eq(1)
                m.next = "CLEARING"
            with m.State("CLEARING"):
                m.d.sync += self.clear.eq(0)
                m.next = "IDLE"

        # The first fault stays until CLEAR.
        watchdog, elapsed = values["WATCHDOG"], Signal(32)
        # A cycle ahead, since `late` is compared for the next one.
        m.d.sync += elapsed.eq(Mux(self.run_start | load_program, 2, elapsed + 1))
        late, watched = Signal(), Signal()
        m.d.sync += [
            late.eq((elapsed >= watchdog) & ~(self.run_start | load_program)),
            watched.eq(watchdog != 0),
        ]
        timeout = (counting | self.program_busy) & watched & late & ~run_end
        overflow = (starts.i.valid & ~starts.i.ready) | (load & ~idle)
        faults = [(port.cause != Cause.NONE, port.cause, port.info) for port in ports]
        faults += [
            (self.illegal, Cause.ILLEGAL_INSTRUCTION, self.index),
            (take & ~self.run_start, Cause.NO_PROGRAM, next_start.entry),
            (overflow, Cause.QUEUE_FULL, 0),
            (timeout, Cause.WATCHDOG, self.dispatched),
        ]
        resets = delayed(m, self.clear, 1, reset_less=False)  # The engines still show their faults.
        m.d.comb += failing.eq(Cat(condition for condition, _, _ in faults).any() & ~failed & ~resets)
        with m.If(~failed & ~resets):
            for condition, cause, info in reversed(faults):
                with m.If(condition):
                    m.d.sync += [values["CAUSE"].eq(cause), values["CAUSE_INFO"].eq(info)]
        with m.If(self.clear):
            m.d.sync += [values["CAUSE"].eq(0), values["CAUSE_INFO"].eq(0), clear_wanted.eq(0)]
        with m.Elif(commanded[registers.Control.CLEAR] & failed):
            m.d.sync += clear_wanted.eq(1)

        # Status, interrupt and counters.
        interrupt = Signal()
        with m.If(failing | run_end):
            m.d.sync += interrupt.eq(1)
        with m.Elif(commanded[registers.Control.ACKNOWLEDGE]):
            m.d.sync += interrupt.eq(0)
        status = {
            registers.Status.BUSY: working | queued,
            registers.Status.ERROR: failed,
            registers.Status.LOADED: self.program_loaded,
            registers.Status.INTERRUPT: interrupt,
            registers.Status.QUEUED: working & queued,
        }
        constants = {
            "IDENTITY": registers.IDENTITY,
            "VERSION": VERSION,
            "HASH_LOW": self._accelerator.hash & 0xFFFF_FFFF,
            "HASH_HIGH": self._accelerator.hash >> 32,
        }
        m.d.comb += [values[name].eq(value) for name, value in constants.items()]
        for bit, condition in status.items():
            m.d.comb += values["STATUS"][int(bit).bit_length() - 1].eq(condition)
        m.d.comb += self.irq.eq(interrupt & values["IRQ_ENABLE"][0])
        with m.If(run_end):
            m.d.sync += values["RUNS"].eq(values["RUNS"] + 1)
        counters = {"CYCLES": counting & ~run_end}
        for engine in isa.Engine:
            counters[f"{engine.name}_BUSY"] = counting & self.busy[engine]
            counters[f"{engine.name}_STALLED"] = counting & self.stalled[engine]
        for name, condition in counters.items():
            with m.If(self.run_start):
                m.d.sync += values[name].eq(1 if name == "CYCLES" else 0)
            with m.Elif(condition):
                m.d.sync += values[name].eq(values[name] + 1)
        return m
