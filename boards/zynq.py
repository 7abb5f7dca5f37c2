"""Zynq-7000 boards with the DDR3 of the processing system: AMD ZC706 (XC7Z045) and Digilent's PYNQ-Z1 (XC7Z020)."""

from ..arch.accelerator import Accelerator, Lanes
from .board import Board, Interface, Resources

__all__ = ["PYNQ_Z1", "ZC706"]

ZC706 = Board(
    name="zc706",
    part="xc7z045ffg900-2",
    flow="xc7",
    budget=Resources(lut=218_600, ff=437_200, dsp=900, bram=545),
    interface=Interface(
        bus_bytes=8,
        ports=4,
        clock_mhz=250,
        latency_cycles=60,
        # tRFC 160 ns (2 Gbit) of every tREFI 7.8 us is 2.1 % (JESD79-3); the same 60 of 1,170 cycles as on the ZCU102.
        refresh_cycles=60,
        refresh_period=1170,
        bandwidth_bytes_per_second=4.26e9,
        description="32-bit DDR3-1066 behind four 64-bit AXI HP ports",
    ),
    clock_mhz=150,
    default=Accelerator(
        lanes=Lanes(fixed8=8, fixed4=24),
        columns=4,
        depth=16,
        drain=4,
        vector=4,
        scratchpad_regions=2,
        scratchpad_rows=4096,
        weight_rows=2048,
        param_rows=1024,
        norm_rows=512,
        operand_chunks=256,
        row_scales=256,
        index_rows=512,
        table_pages=4,
        instructions=1024,
        bus_bytes=8,
        burst_beats=64,
        ports=2,
    ),
)
PYNQ_Z1 = Board(
    name="pynq-z1",
    part="xc7z020clg400-1",
    flow="xc7",
    budget=Resources(lut=53_200, ff=106_400, dsp=220, bram=140),
    interface=Interface(
        bus_bytes=8,
        ports=4,
        clock_mhz=150,
        latency_cycles=60,
        # tRFC 260 ns (4 Gbit) of every tREFI 7.8 us is 3.3 % (JESD79-3); 40 of 780 cycles of 100 MHz are 5.1 %.
        refresh_cycles=40,
        refresh_period=780,
        bandwidth_bytes_per_second=2.1e9,
        description="16-bit DDR3-1050 behind four 64-bit AXI HP ports",
    ),
    clock_mhz=100,
    default=Accelerator(
        lanes=Lanes(fixed8=4, fixed4=12, fixed4_operand_bits=8),
        columns=4,
        depth=8,
        drain=2,
        vector=2,
        scratchpad_regions=2,
        scratchpad_rows=1024,
        weight_rows=1024,
        param_rows=512,
        norm_rows=128,
        operand_chunks=256,
        row_scales=64,
        index_rows=256,
        table_pages=1,
        instructions=512,
        bus_bytes=8,
        burst_beats=64,
    ),
)
