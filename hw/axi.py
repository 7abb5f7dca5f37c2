"""The AXI4 channels that the machine uses, and their ports under the standard names.

All bursts are INCR and as wide as the bus; there is one identifier, so responses come in order.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..arch.accelerator import Accelerator

__all__ = [
    "ADDRESS_BITS",
    "LENGTH_BITS",
    "ReadChannel",
    "WriteChannel",
    "connect_master",
    "master_ports",
    "port_address",
    "prefixes",
]

ADDRESS_BITS = 32
LENGTH_BITS = 9
"""Beats of a burst, 1..256."""
_INCR = 1
_MODIFIABLE_BUFFERABLE = 0b0011


class ReadChannel(wiring.Signature):
    """Read address and read data, facing the master."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {
                "arvalid": Out(1),
                "arready": In(1),
                "araddr": Out(ADDRESS_BITS),
                "arlen": Out(8),
                "rvalid": In(1),
                "rready": Out(1),
                "rdata": In(accelerator.bus_bytes * 8),
                "rresp": In(2),
                "rlast": In(1),
            }
        )


class WriteChannel(wiring.Signature):
    """Write address, write data and response, facing the master."""

    def __init__(self, accelerator: Accelerator):
        super().__init__(
            {
                "awvalid": Out(1),
                "awready": In(1),
                "awaddr": Out(ADDRESS_BITS),
                "awlen": Out(8),
                "wvalid": Out(1),
                "wready": In(1),
                "wdata": Out(accelerator.bus_bytes * 8),
                "wstrb": Out(accelerator.bus_bytes),
                "wlast": Out(1),
                "bvalid": In(1),
                "bready": Out(1),
                "bresp": In(2),
            }
        )


def prefixes(accelerator: Accelerator) -> list[str]:
    """Of the names of each master's ports."""
    if accelerator.ports == 1:
        return ["m_axi"]
    return [f"m_axi_{port}" for port in range(accelerator.ports)]


def port_address(accelerator: Accelerator, address: Value, port: Value | int) -> Value:
    """Where `port` finds its beat of the line at `address` (docs/machine.md, "DRAM"): the number of the port moves from
    below the number of the line in its block to above it."""
    if accelerator.ports == 1:
        return address
    beat, line, block = (
        (size - 1).bit_length()
        for size in (accelerator.bus_bytes, accelerator.line_bytes, accelerator.block_bytes)
    )
    number = Const(port, line - beat) if isinstance(port, int) else port[: line - beat]
    return Cat(Const(0, beat), *([address[line:block]] if block > line else []), number, address[block:])


def _constants(prefix: str, bus_bytes: int) -> dict[str, tuple[int, int]]:
    """Width and value of the address channel's constant signals."""
    return {
        f"{prefix}id": (1, 0),
        f"{prefix}size": (3, bus_bytes.bit_length() - 1),
        f"{prefix}burst": (2, _INCR),
        f"{prefix}lock": (1, 0),
        f"{prefix}cache": (4, _MODIFIABLE_BUFFERABLE),
        f"{prefix}prot": (3, 0),
        f"{prefix}qos": (4, 0),
    }


def master_ports(accelerator: Accelerator, prefix: str) -> dict[str, wiring.Member]:
    """Ports of one AXI4 master: members of a component's signature."""
    members = {}
    for address, signature in (("ar", ReadChannel(accelerator)), ("aw", WriteChannel(accelerator))):
        members |= {
            name: Out(width) for name, (width, _) in _constants(address, accelerator.bus_bytes).items()
        }
        members |= signature.members
    members |= {"rid": In(1), "bid": In(1)}
    return {f"{prefix}_{name}": member for name, member in members.items()}


def connect_master(m: Module, component, accelerator: Accelerator, prefix: str, read, write) -> None:
    """Connect the ports of `master_ports` on `component` to a read and a write channel (facing the master)."""
    for address, channel in (("ar", read), ("aw", write)):
        for name, (_, value) in _constants(address, accelerator.bus_bytes).items():
            m.d.comb += getattr(component, f"{prefix}_{name}").eq(value)
        for name, member in channel.signature.members.items():
            port, inner = getattr(component, f"{prefix}_{name}"), getattr(channel, name)
            m.d.comb += port.eq(inner) if member.flow == Out else inner.eq(port)
