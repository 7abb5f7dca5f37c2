"""The whole matrix engine against the loops of docs/machine.md."""

import copy

import numpy as np
import pytest
from terrazzo.arch import isa

from .matrix_bench import CONFIGURATIONS, Bench, random_instruction
from .matrix_model import Memories, execute


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
    assert [c.done - 1 for c in bench.cycles if c.done] == list(range(count))
    return bench


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_random_instructions(name, seed):
    check(name, seed, 12, grant=(1.0, 0.7, 0.3)[seed], gap=(0.0, 0.5, 0.0)[seed])


@pytest.mark.parametrize("mode", isa.FetchMode)
@pytest.mark.parametrize("param_mode", isa.ParamMode)
def test_modes(mode, param_mode):
    check("small", 50 + 3 * mode + param_mode, 6, mode=int(mode), param_mode=int(param_mode), grant=0.8)
