"""AMD ZCU102: Zynq UltraScale+ XCZU9EG, DDR4 of the processing system."""

from ..arch.accelerator import Accelerator, Lanes
from .board import Board, Interface, Resources

__all__ = ["ZCU102"]

ZCU102 = Board(
    name="zcu102",
    part="xczu9eg-ffvb1156-2-e",
    flow="xcup",
    budget=Resources(lut=274_080, ff=548_160, dsp=2_520, bram=912),
    interface=Interface(
        bus_bytes=16,
        ports=4,
        clock_mhz=333,
        latency_cycles=60,
        # tRFC 350 ns (8 Gbit) of every tREFI 7.8 us is 4.5 % (JESD79-4); rounded up to more than 5 %.
        refresh_cycles=60,
        refresh_period=1170,
        bandwidth_bytes_per_second=19.2e9,
        description="64-bit DDR4-2400 behind four 128-bit AXI HP ports",
    ),
    clock_mhz=150,
    default=Accelerator(
        lanes=Lanes(fixed8=32, fixed4=16, pot4=8, sp2_4=8),
        columns=4,
        depth=16,
        drain=4,
        vector=4,
        scratchpad_regions=2,
        scratchpad_rows=4096,
        weight_rows=2048,
        param_rows=2048,
        norm_rows=1024,
        operand_chunks=256,
        row_scales=256,
        index_rows=2048,
        table_pages=4,
        instructions=1024,
        bus_bytes=16,
        burst_beats=64,
    ),
)
