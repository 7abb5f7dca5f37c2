"""AXI4-Lite slave: register reads and writes as strobes."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["ADDRESS_BITS", "PORTS", "Slave", "slave_ports"]

ADDRESS_BITS = 8
PORTS = {
    "awaddr": In(ADDRESS_BITS),
    "awprot": In(3),
    "awvalid": In(1),
    "awready": Out(1),
    "wdata": In(32),
    "wstrb": In(4),
    "wvalid": In(1),
    "wready": Out(1),
    "bresp": Out(2),
    "bvalid": Out(1),
    "bready": In(1),
    "araddr": In(ADDRESS_BITS),
    "arprot": In(3),
    "arvalid": In(1),
    "arready": Out(1),
    "rdata": Out(32),
    "rresp": Out(2),
    "rvalid": Out(1),
    "rready": In(1),
}
"""Members of the slave's side, under their standard names."""


def slave_ports(prefix: str) -> dict[str, wiring.Member]:
    """Ports of one AXI4-Lite slave: members of a component's signature."""
    return {f"{prefix}_{name}": member for name, member in PORTS.items()}


class Slave(wiring.Component):
    """Turns AXI4-Lite transfers into register accesses; every response is OKAY.

    `write` is high for one cycle with `write_offset`, `write_data` and `write_mask` (a bit per data bit), from registers, and
    before the response; `read_data` must be the value of the register at the `read_offset` of the cycle before. Offsets are
    multiples of 4. A write takes effect two cycles after both its address and its data have been accepted.
    """

    def __init__(self):
        super().__init__(
            {
                "axi": Out(wiring.Signature(PORTS)),
                "write": Out(1),
                "write_offset": Out(ADDRESS_BITS),
                "write_data": Out(32),
                "write_mask": Out(32),
                "read_offset": Out(ADDRESS_BITS),
                "read_data": In(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi
        address, address_full = Signal(ADDRESS_BITS), Signal()
        data, mask, data_full = Signal(32), Signal(4), Signal()
        taken, asked, read_offset = Signal(), Signal(2), Signal(ADDRESS_BITS)

        m.d.comb += [
            axi.awready.eq(~address_full),
            axi.wready.eq(~data_full),
            taken.eq(address_full & data_full & (~axi.bvalid | axi.bready)),
            self.write_offset.eq(Cat(Const(0, 2), address[2:])),
            self.write_data.eq(data),
            self.write_mask.eq(Cat(bit.replicate(8) for bit in mask)),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [address.eq(axi.awaddr), address_full.eq(1)]
        with m.If(axi.wvalid & axi.wready):
            m.d.sync += [data.eq(axi.wdata), mask.eq(axi.wstrb), data_full.eq(1)]
        with m.If(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        m.d.sync += self.write.eq(taken)
        with m.If(taken):
            m.d.sync += [address_full.eq(0), data_full.eq(0)]
        with m.If(self.write):
            m.d.sync += axi.bvalid.eq(1)

        m.d.comb += [
            axi.arready.eq(~axi.rvalid & ~asked.any()),
            self.read_offset.eq(Cat(Const(0, 2), read_offset[2:])),
        ]
        m.d.sync += asked.eq(Cat(axi.arvalid & axi.arready, asked[0]))
        with m.If(axi.arvalid & axi.arready):
            m.d.sync += read_offset.eq(axi.araddr)
        with m.If(asked[1]):
            m.d.sync += [axi.rdata.eq(self.read_data), axi.rvalid.eq(1)]
        with m.Elif(axi.rready):
            m.d.sync += axi.rvalid.eq(0)
        return m
