"""What travels with a step through the pipeline, and the length of its parts in cycles.

A step is `vector` channels of every column. Stage s of a step is the cycle s cycles after its read was granted:
2 data arrives, 3 codes, 5 products and biased logits, 6..7 maxima and sums, 6..11 normalisation and residual scaling,
12..16 requantizer, 17..19 tables, 20..21 clamp and output (pushed into the write queue; its sum for softmax is complete at 23).
Multipliers stand between registers, and so do block RAMs.
"""

from __future__ import annotations

from amaranth.lib import data
from amaranth.utils import ceil_log2

from ...arch.accelerator import Accelerator

__all__ = [
    "GATHER_LATENCY",
    "LAYERNORM_LATENCY",
    "MOMENTS_LATENCY",
    "MOMENTS_WAIT",
    "OUTPUT_STAGE",
    "QUEUE_STEPS",
    "SOFTMAX_LATENCY",
    "STAGES",
    "slot_bits",
    "step_layout",
]

STAGES = 24
OUTPUT_STAGE = 21
QUEUE_STEPS = 32
"""Steps that may be between the grant of their read and the grant of their write."""
LAYERNORM_LATENCY = 11
"""The first step that uses a tile's moments may be granted columns + this + 1 cycles after the last that made them."""
MOMENTS_LATENCY = 5
"""The first step of a tile may be issued columns + this + 1 cycles after its row moments were asked for."""
MOMENTS_WAIT = 8
"""Cycles from the setup of a LAYERNORM until the first row moments are asked for: column c's are read 11 + c cycles after the
`done` of the drain that wrote them, or later."""
SOFTMAX_LATENCY = 30
"""A tile's row scales are written columns + this cycles after the grant of its last step; COMPACT's count sooner."""
GATHER_LATENCY = 4
"""A position's first step may be granted this + 1 cycles after that of the position before."""


def slot_bits(accelerator: Accelerator) -> int:
    """Bits of a slot number: a word of `depth` bytes has depth / vector slots of `vector` bytes."""
    return ceil_log2(accelerator.depth // accelerator.vector)


def step_layout(accelerator: Accelerator) -> data.StructLayout:
    """A step, or the reading of the second operand that the next step uses."""
    return data.StructLayout(
        {
            "valid": 1,  # a step
            "residual": 1,  # the read of a second operand
            "measure": 1,  # nothing is written
            "first": 1,  # of its pass over a tile
            "last": 1,
            "bank": 1,  # tile number modulo 2
            "wide": 1,  # codes of 16 bits
            "slot": slot_bits(accelerator),  # place of the codes in their word
            "column": ceil_log2(accelerator.columns),  # whose codes all columns use (broadcast, GATHER)
            "present": accelerator.vector,  # elements that are channels
        }
    )
