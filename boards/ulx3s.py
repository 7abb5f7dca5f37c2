"""Radiona ULX3S with the 85F: Lattice ECP5, SDRAM."""

from ..arch.accelerator import Accelerator, Lanes
from .board import Board, Interface, Resources

__all__ = ["ULX3S_85F"]

ULX3S_85F = Board(
    name="ulx3s-85f",
    part="LFE5U-85F-6BG381C",
    flow="ecp5",
    budget=Resources(lut=83_640, ff=83_640, dsp=156, bram=208),
    interface=Interface(
        bus_bytes=4,
        ports=1,
        clock_mhz=100,
        latency_cycles=12,
        # 8,192 rows in 64 ms, each about 70 ns: 390 cycles of 50 MHz apart (256 Mbit SDR SDRAM).
        refresh_cycles=4,
        refresh_period=390,
        bandwidth_bytes_per_second=200e6,
        description="32 MB of 16-bit SDRAM at 100 MHz",
    ),
    clock_mhz=50,
    default=Accelerator(
        lanes=Lanes(fixed8=2, fixed4=2),
        columns=2,
        depth=4,
        drain=2,
        vector=2,
        scratchpad_regions=2,
        scratchpad_rows=1024,
        weight_rows=2048,
        param_rows=256,
        norm_rows=128,
        operand_chunks=128,
        row_scales=64,
        index_rows=256,
        table_pages=2,
        instructions=256,
        bus_bytes=4,
        burst_beats=64,
    ),
)
