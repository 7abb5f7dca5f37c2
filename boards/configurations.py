"""Accelerators that belong to no board: the demo's, and those that tests and results compare with others."""

import dataclasses

from ..arch.accelerator import Accelerator, Lanes
from .ulx3s import ULX3S_85F
from .zcu102 import ZCU102

__all__ = [
    "deit_accelerator",
    "demo_accelerator",
    "fixed8_accelerator",
    "large_accelerator",
    "mixed_accelerator",
    "mobilenet_accelerator",
    "pynq_accelerator",
    "quads_accelerator",
    "second_accelerator",
    "small_accelerator",
    "zc706_accelerator",
]


def demo_accelerator() -> Accelerator:
    """512 multipliers: small enough to compile in a minute, all lane kinds, both digit models."""
    return Accelerator(
        lanes=Lanes(fixed8=8, fixed4=4, pot4=2, sp2_4=2),
        columns=4,
        depth=8,
        drain=2,
        vector=4,
        scratchpad_regions=2,
        scratchpad_rows=1024,
        weight_rows=4096,
        param_rows=2048,
        norm_rows=512,
        operand_chunks=256,
        row_scales=64,
        index_rows=256,
        table_pages=4,
        instructions=512,
        bus_bytes=16,
        burst_beats=64,
    )


def second_accelerator() -> Accelerator:
    """256 multipliers: everything that the demo's has is different here, kinds, ratios and widths."""
    return Accelerator(
        lanes=Lanes(fixed8=4, pot4=4),
        columns=2,
        depth=16,
        drain=4,
        vector=8,
        scratchpad_regions=4,
        scratchpad_rows=512,
        weight_rows=4096,
        param_rows=1024,
        norm_rows=256,
        operand_chunks=128,
        row_scales=128,
        index_rows=512,
        table_pages=3,
        instructions=1024,
        bus_bytes=8,
        burst_beats=32,
    )


def large_accelerator() -> Accelerator:
    """4,096 multipliers."""
    return Accelerator(
        lanes=Lanes(fixed8=32, fixed4=16, pot4=8, sp2_4=8),
        columns=4,
        depth=16,
        drain=4,
        vector=4,
        scratchpad_regions=2,
        scratchpad_rows=2048,
        weight_rows=4096,
        param_rows=2048,
        norm_rows=1024,
        operand_chunks=256,
        row_scales=256,
        index_rows=1024,
        table_pages=4,
        instructions=1024,
        bus_bytes=16,
        burst_beats=64,
        ports=2,
    )


def fixed8_accelerator() -> Accelerator:
    """4,096 multipliers of one kind: the ZCU102's default with a wider drain and vector engine, two ports and private lanes."""
    return dataclasses.replace(
        ZCU102.default, lanes=Lanes(fixed8=64), columns=4, ports=2, drain=8, vector=8, private=4
    )


def deit_accelerator() -> Accelerator:
    """5,120 Fixed-8 multipliers for transformers of 197 tokens, without gathers: 40 tiles of 5. The scratchpad holds a DeiT-Base; 12 lanes
    in LUTs leave DSPs for drain and vector engine."""
    return dataclasses.replace(
        ZCU102.default,
        lanes=Lanes(fixed8=64, fixed8_luts=12),
        columns=5,
        drain=8,
        vector=8,
        scratchpad_regions=4,
        weight_rows=1024,
        index_rows=0,
        instructions=2560,
        ports=4,
        row_maxima=256,
        operand_slots=0,
    )


def mixed_accelerator() -> Accelerator:
    """4,096 Fixed-8 multipliers on DSPs and as many Fixed-4 ones in LUTs, for transformers whose rows have both schemes: what
    the ZCU102's budget holds in blocks of 64 lanes, which divide the layers of all DeiTs."""
    return dataclasses.replace(
        deit_accelerator(),
        lanes=Lanes(fixed8=32, fixed4=32, fixed4_operand_bits=8),
        columns=8,
        drain=4,
        vector=4,
        scratchpad_rows=2048,
        weight_rows=2048,
        param_rows=1024,
        norm_rows=512,
        instructions=4096,
    )


def mobilenet_accelerator() -> Accelerator:
    """4,096 Fixed-8 multipliers on DSPs and 2,048 Fixed-4 ones in LUTs, 64 outputs drained per cycle and four private chunks, for
    MobileNetV2, which has many outputs of few products and depthwise layers. All its activations are on chip."""
    return dataclasses.replace(
        mixed_accelerator(),
        lanes=Lanes(fixed8=32, fixed4=16, fixed4_operand_bits=8),
        drain=8,
        vector=2,
        private=4,
        scratchpad_rows=4096,
        weight_rows=1024,
        param_rows=2048,
        norm_rows=0,
        row_scales=0,
        row_maxima=0,
        table_pages=0,
        instructions=512,
    )


def zc706_accelerator() -> Accelerator:
    """512 Fixed-8 multipliers on DSP48E1s, which make a product each, and 3,584 Fixed-4 ones in LUTs, for transformers."""
    return dataclasses.replace(
        mixed_accelerator(),
        lanes=Lanes(fixed8=8, fixed4=56, fixed4_operand_bits=8),
        columns=4,
        drain=8,
        weight_rows=1536,
        param_rows=1024,
        norm_rows=512,
        instructions=2048,
        bus_bytes=8,
        ports=2,
    )


def quads_accelerator() -> Accelerator:
    """6,656 Fixed-4 multipliers by four in a DSP, 4,608 in LUTs, of which 8,192 take keys and values, and 1,024 Fixed-8 ones, for
    transformers of 4-bit rows and activations, in blocks of 96 lanes, which divide the layers of all DeiTs. The image's 8 bits are
    two digits."""
    return dataclasses.replace(
        mixed_accelerator(),
        lanes=Lanes(
            fixed8=8, fixed4=88, fixed4_quads=52, fixed4_dynamic=64, fixed4_operand_bits=5, fixed4_digits=True
        ),
        weight_rows=1536,
        param_rows=2048,
        norm_rows=1024,
    )


def pynq_accelerator() -> Accelerator:
    """640 Fixed-4 multipliers by four in a DSP48E1, 256 in LUTs, and 128 Fixed-8 ones in LUTs, for ResNet-18 with activations of 5
    bits and an image of 8, which are two digits. A block of 32 outputs of its widest layers takes 576 of the weight rows."""
    return Accelerator(
        lanes=Lanes(
            fixed8=4, fixed8_luts=4, fixed4=28, fixed4_quads=20, fixed4_operand_bits=5, fixed4_digits=True
        ),
        columns=4,
        depth=8,
        drain=1,
        vector=1,
        scratchpad_regions=2,
        scratchpad_rows=4096,
        weight_rows=1024,
        param_rows=512,
        norm_rows=0,
        operand_chunks=512,
        row_scales=0,
        index_rows=0,
        table_pages=0,
        instructions=1024,
        bus_bytes=8,
        burst_beats=64,
        ports=2,
        operand_slots=0,
    )


def small_accelerator() -> Accelerator:
    """64 multipliers in eight lanes, without the parts that attention needs: what is placed and routed for the ULX3S."""
    return dataclasses.replace(
        ULX3S_85F.default,
        lanes=Lanes(fixed8=4, fixed4=4),
        drain=1,
        vector=1,
        scratchpad_regions=1,
        scratchpad_rows=2048,
        weight_rows=512,
        norm_rows=0,
        operand_chunks=64,
        row_scales=0,
        index_rows=0,
        table_pages=0,
        operand_slots=0,
        broadcast_stages=2,
        drain_stages=2,
    )
