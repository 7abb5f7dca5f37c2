"""The whole matrix engine against the loops of docs/machine.md."""

import copy

import numpy as np
import pytest

from terrazzo.arch import isa

from ..sampling import pairs
from .matrix_bench import CONFIGURATIONS, Bench, random_instruction
from .matrix_model import Memories, execute, largest


def check(name, seed, count, *, grant=1.0, gap=0.0, **forced):
    """Runs `count` random instructions and compares all memories; returns the bench."""
    accelerator = CONFIGURATIONS[name]
    random = np.random.default_rng(seed)
    instructions = [random_instruction(accelerator, random, tag, **forced) for tag in range(count)]
    memory = Memories(accelerator, random)
    bench = Bench(accelerator, copy.deepcopy(memory), seed=seed, grant=grant, gap=gap)
    bench.run(instructions)
    for instruction in instructions:
        execute(memory, instruction)
    np.testing.assert_array_equal(bench.memory.scratchpad, memory.scratchpad)
    np.testing.assert_array_equal(bench.memory.patterns, memory.patterns)
    assert {place: bench.memory.maxima.get(place) for place in memory.maxima} == memory.maxima
    moments = {place: sums for place, sums in memory.moments.items() if sums is not None}
    assert {place: bench.memory.moments.get(place) for place in moments} == moments
    assert [c.done - 1 for c in bench.cycles if c.done] == list(range(count))
    return bench


@pytest.mark.parametrize("name, seed", pairs(CONFIGURATIONS, 3))
def test_random_instructions(name, seed):
    check(name, seed, 12, grant=(1.0, 0.7, 0.3)[seed], gap=(0.0, 0.5, 0.0)[seed])


@pytest.mark.parametrize("mode", isa.FetchMode)
@pytest.mark.parametrize("param_mode", isa.ParamMode)
def test_modes(mode, param_mode):
    check("small", 50 + 3 * mode + param_mode, 6, mode=int(mode), param_mode=int(param_mode), grant=0.8)


@pytest.mark.parametrize("name", [name for name, a in CONFIGURATIONS.items() if a.row_maxima])
def test_row_maxima(name):
    """Of logits with empty slots, of steps that have none, of blocks, groups and tiles, right after each other."""
    bench = check(name, 7, 8, destination=0, second=0, maximum=0, maxima=1, dst_channel=0)
    assert len(set(bench.memory.maxima.values())) > 5


@pytest.mark.parametrize("name", [name for name, a in CONFIGURATIONS.items() if a.row_moments])
def test_row_moments(name):
    """Written and added to, of tiles as short as they may be, right after each other."""
    a = CONFIGURATIONS[name]
    forced = {"destination": 0, "second": 0, "maxima": 0, "gather": 0, "groups": 1, "blocks": 2, "skip": 0}
    forced |= {
        "steps": -(-a.moment_steps // 2),
        "param_mode": 0,
        "wide": 1,
        "positions": 2 * a.columns - 1,
        "chunks": 1,
    }
    bench = check(name, 8, 6, mode=0, **forced)
    sums = [sums for sums in bench.memory.moments.values() if sums is not None]
    assert len(set(sums)) > 5


@pytest.mark.parametrize("unsigned", [0, 1])
def test_digits(unsigned):
    """Operands of 8 bits on all lanes of every kind, wherever they come from."""
    forced = {"digits": 1, "maximum": 0, "gather": 0, "steps": 6, "destination": 0, "param_mode": 0}
    check("digits", 30 + unsigned, 3, unsigned=unsigned, **forced)


def chained(accelerator, random):
    """Instructions of which each reads what the one before wrote: keys, values, a tensor."""
    linear = {
        "mode": isa.FetchMode.LINEAR,
        "unsigned": 0,
        "maximum": 0,
        "second": 0,
        "chunks": 2,
        "blocks": 2,
    }
    instructions = []
    for tag, destination in enumerate(isa.Destination):
        forced = {**linear, "destination": int(destination), "wide": 0, "positions": 5}
        writer = random_instruction(accelerator, random, 2 * tag, **forced)
        reader = random_instruction(
            accelerator, random, 2 * tag + 1, **{**forced, "positions": 2, "destination": 0}
        )
        if destination == isa.Destination.SCRATCHPAD:
            source = {"src": writer.dst, "src_stride": writer.dst_stride}
            most = largest(accelerator)
            writer = isa.Instruction(isa.Opcode.MATRIX, {**writer.values, "lo": -most, "hi": most})
        else:
            source = {"weight": writer.dst, "weight_stride": 1}
        instructions += [writer, isa.Instruction(isa.Opcode.MATRIX, {**reader.values, **source})]
    return instructions


@pytest.mark.parametrize(
    "name, seed",
    [
        ("small", 0),
        ("small", 1),
        *(pytest.param(*case, marks=pytest.mark.full) for case in (("deep", 2), ("columns_4", 19))),
    ],
)
def test_instructions_read_what_earlier_ones_wrote(name, seed):
    accelerator = CONFIGURATIONS[name]
    random = np.random.default_rng(seed)
    instructions = chained(accelerator, random)
    memory = Memories(accelerator, random)
    bench = Bench(accelerator, copy.deepcopy(memory))
    bench.run(instructions, serial=True)
    for instruction in instructions:
        execute(memory, instruction)
    np.testing.assert_array_equal(bench.memory.scratchpad, memory.scratchpad)
    np.testing.assert_array_equal(bench.memory.patterns, memory.patterns)


STEADY = {
    "mode": isa.FetchMode.LINEAR,
    "positions": 9,
    "groups": 2,
    "blocks": 2,
    "maximum": 0,
    "destination": 0,
    "skip": 0,
}


@pytest.mark.parametrize(
    "chunks, steps, second, cycles",
    [(5, 2, 0, 5), (2, 2, 0, 2), (3, 3, 0, 3), (1, 3, 0, 3), (4, 2, 1, 4), (1, 2, 1, 4)],
)
def test_rate_is_the_larger_of_chunks_and_drain(chunks, steps, second, cycles):
    """No bubble between blocks, groups, tiles and instructions: `cycles` per block throughout."""
    forced = {**STEADY, "param_mode": 0, "wide": 0, "chunks": chunks, "steps": steps, "second": second}
    bench = check("small", 1, 3, **forced)
    issues = [number for number, cycle in enumerate(bench.cycles) if cycle.busy and not cycle.stalled]
    blocks = 3 * 5 * 2 * 2
    assert len(issues) == blocks * chunks
    assert issues[-1] - issues[0] <= blocks * cycles - 1
    writes = [number for number, cycle in enumerate(bench.cycles) if cycle.write >= 0]
    assert len(writes) == blocks * steps * (1 + second)


@pytest.mark.parametrize("halt_at", [40, 77, 120, 201])
def test_halt_freezes_everything(halt_at):
    accelerator = CONFIGURATIONS["small"]
    random = np.random.default_rng(5)
    instructions = [random_instruction(accelerator, random, tag) for tag in range(12)]
    bench = Bench(accelerator, Memories(accelerator, random))
    bench.run(instructions, halt_at=halt_at)
    assert len(bench.cycles) == halt_at + 61
    assert any(cycle.fetch >= 0 for cycle in bench.cycles[:halt_at])
    for number, cycle in enumerate(bench.cycles[halt_at:]):
        assert (cycle.ready, cycle.busy) == (0, 1)
        if number:  # Requests are registers, which know of it a cycle later.
            assert (cycle.residual, cycle.fetch, cycle.write, cycle.weights) == (-1, -1, -1, 0)
        if number > 1:  # of the cycle before
            assert cycle.stalled
        # An instruction that ended in the cycle before the halt says so in the next one.
        assert cycle.done == 0 or number == 0
