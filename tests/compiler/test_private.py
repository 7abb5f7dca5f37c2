"""Windows of single channels, on machines where lanes take chunks of their own."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo import compiler
from terrazzo.arch import isa
from terrazzo.arch.accelerator import Accelerator, Lanes
from terrazzo.arch.memory import MemoryModel
from terrazzo.boards import fixed8_accelerator
from terrazzo.compiler import build
from terrazzo.sim import cycle, functional, reference

from ..graphs import Builder, random_codes
from ..tiny import MACHINE

MACHINES = {
    (private, taps): dataclasses.replace(
        MACHINE, lanes=Lanes(fixed8=8 * private // taps, fixed4=2), private=private, weight_rows=512
    )
    for private, taps in ((2, 1), (4, 1), (2, 2), (4, 2))
}
"""By the parameter, and taps that a lane multiplies in a cycle."""


def instructions(program) -> list[isa.Instruction]:
    """All MATRIX instructions."""
    found = [isa.decode(words) for words in program.instructions]
    return [i for i in found if i.opcode == isa.Opcode.MATRIX]


def check(builder: Builder, output: str, machine: Accelerator):
    """Compiles and runs a graph; its program."""
    graph = builder.graph(output)
    program, codes = compiler.compile(graph, machine), random_codes(graph, 1)
    expected = reference.run(graph, codes)
    got = functional.run(program, codes)
    np.testing.assert_array_equal(got.reshape(expected.shape), expected)
    return program


@pytest.mark.parametrize("private", MACHINES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_reference_equals_functional(private, data):
    """Any kernel, stride, padding, dilation and number of channels; with residuals, second outputs and pools."""
    channels = data.draw(st.sampled_from([3, 5, 8, 12, 16, 17, 24, 31, 40, 72]))
    height, width = (data.draw(st.integers(2, 9)) for _ in range(2))
    kernel = tuple(data.draw(st.integers(1, min(5, side))) for side in (height, width))
    stride = tuple(data.draw(st.integers(1, 2)) for _ in range(2))
    dilation = tuple(
        data.draw(st.integers(1, 2)) if 2 * k - 1 <= side else 1
        for k, side in zip(kernel, (height, width), strict=True)
    )
    padding = tuple(data.draw(st.integers(0, k - 1)) for k in (kernel[0], kernel[0], kernel[1], kernel[1]))
    b = Builder(data.draw(st.integers(0, 99)), (height, width, channels), MACHINES[private].lanes, 2)
    match data.draw(st.sampled_from(["conv", "second", "residual", "max", "average"])):
        case "conv":
            x = b.conv(b.input, channels, kernel, stride, padding, channels, dilation=dilation)
        case "second":
            x = b.conv(b.input, channels, kernel, stride, padding, channels, second=True)
            x = f"{x}.second"
        case "residual":
            y = b.conv(b.input, channels, (1, 1), groups=channels, dtype="s16", second=True)
            odd = tuple(k - 1 + k % 2 for k in kernel)
            pad = (odd[0] // 2, odd[0] // 2, odd[1] // 2, odd[1] // 2)
            x = b.conv(f"{y}.second", channels, odd, padding=pad, groups=channels, dtype="s16", residual=y)
        case "max":
            x = b.maxpool(b.input, kernel, stride, padding)
        case "average":
            x = b.avgpool(b.input, kernel, stride, padding)
    program = check(b, x, MACHINES[private])
    assert MACHINES[private].private_taps == private[1]
    if private[1] == 1 or "max" not in x:
        assert all(i.private for i in instructions(program) if i.mode == isa.FetchMode.CONV)


def full_size(machine: Accelerator, side: int, channels: int) -> tuple[int, int]:
    """Multiply-accumulates of a 3 x 3 layer in one piece, and cycles from its first instruction's start to its last one's end."""
    b = Builder(1, (side, side, channels), machine.lanes, machine.drain, 0)
    x = b.conv(b.input, channels, (3, 3), padding=(1, 1, 1, 1), groups=channels)
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(build, "_WAYS", ())
        program = compiler.compile(b.graph(x), machine)
    assert all(i.private and i.tap_chunks == machine.private for i in instructions(program))
    timing = cycle.predict(program, MemoryModel(latency=60))
    own = [n for n, words in enumerate(program.instructions) if isa.decode(words).opcode == isa.Opcode.MATRIX]
    return program.layers[0].macs, int(timing.done[own].max() - timing.start[own].min())


def test_rate_at_full_size():
    """A product of every Fixed-8 lane in every column and cycle, but for the first chunk's and the last outputs' way."""
    machine = fixed8_accelerator()
    assert machine.multipliers == 4096
    peak = machine.lanes.fixed8 * machine.columns
    assert peak == 256
    small, large = full_size(machine, 28, 64), full_size(machine, 28, 256)
    assert large[0] - small[0] >= peak * (large[1] - small[1])
    assert large[1] < large[0] / peak + 100


def test_rate_with_two_taps_at_full_size():
    """Nine taps take five cycles: 460 useful products per cycle of 4,096, on a bus that brings the input in time."""
    changes = {"columns": 8, "scratchpad_rows": 2048, "bus_bytes": 128, "burst_beats": 32, "ports": 1}
    machine = dataclasses.replace(fixed8_accelerator(), lanes=Lanes(fixed8=32), **changes)
    assert machine.multipliers == 4096 and machine.private_taps == 2
    small, large = full_size(machine, 32, 64), full_size(machine, 32, 256)
    assert large[0] - small[0] >= 460 * (large[1] - small[1])


def test_weights_take_a_row_for_as_many_taps_as_products_in_a_lane():
    machine = MACHINES[4, 1]
    for kernel, rows in ((1, 1), (2, 1), (3, 2), (5, 4)):
        b = Builder(0, (6, 6, 64), machine.lanes, machine.drain, 0)
        found, *_ = instructions(check(b, b.conv(b.input, 64, (kernel, kernel), groups=64), machine))
        assert (found.groups, found.tap_chunks, found.weight_stride) == (2, 4, rows)


def test_tiles_are_whole_groups_of_rows_where_there_is_room():
    """Three chunks of channels are taken four at a time, unless four would take more than there is."""
    machine = MACHINES[4, 1]
    b = Builder(0, (8, 8, 4))
    y = b.conv(b.input, 3 * machine.depth, (1, 1))
    x = b.conv(y, 3 * machine.depth, (3, 3), padding=(1, 1, 1, 1), groups=3 * machine.depth)
    rows = 4 * -(-64 // machine.columns)
    for scratchpad, width in ((4 * rows, 4), (rows, 1)):
        small = dataclasses.replace(machine, scratchpad_rows=scratchpad // machine.scratchpad_regions)
        assert {i.tap_chunks for i in instructions(check(b, x, small)) if i.private} == {width}
