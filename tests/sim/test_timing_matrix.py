"""The timing model of the matrix engine against its RTL, cycle by cycle."""

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.hw import lanes
from terrazzo.sim.timing import matrix
from terrazzo.sim.timing.table import program_table

from ..hw.matrix_bench import CONFIGURATIONS, Bench, random_instruction
from ..hw.matrix_model import Memories
from ..sampling import pairs


def compare(accelerator, instructions, memory, **options):
    """Runs both and compares everything that the rest of the machine sees of the engine."""
    bench = Bench(accelerator, memory, **options)
    bench.run(instructions)
    table = program_table(np.array([isa.encode(instruction) for instruction in instructions]))
    cfg, state = matrix.config(accelerator), np.zeros(matrix.STATE, dtype=np.int64)
    rows = accelerator.scratchpad_rows
    for number, cycle in enumerate(bench.cycles):
        seen = {
            "ready": cycle.ready,
            "busy": cycle.busy,
            "stalled": cycle.stalled,
            "request": (cycle.residual // rows, cycle.fetch // rows, cycle.write // rows, cycle.weights),
            "done": cycle.done - 1,
        }
        said = {
            "ready": matrix.ready(state, cfg),
            "busy": matrix.busy(state),
            "stalled": matrix.stalled(state, table),
            "request": matrix.request(state, table, cfg),
            "done": matrix.step(state, table, cfg, cycle.started, cycle.granted),
        }
        assert said == seen, f"cycle {number}"
    return bench


@pytest.mark.parametrize("name, seed", pairs(CONFIGURATIONS, 4))
def test_every_cycle_equals_rtl(name, seed):
    accelerator = CONFIGURATIONS[name]
    random = np.random.default_rng(seed + 100)
    instructions = [random_instruction(accelerator, random, tag) for tag in range(16)]
    grant, gap = ((1.0, 0.0), (0.7, 0.0), (0.3, 0.9), (0.9, 0.5))[seed]
    compare(accelerator, instructions, Memories(accelerator, random), seed=seed, grant=grant, gap=gap)


def test_array_latency_is_that_of_the_lanes():
    assert matrix._LANES_LATENCY == lanes.LATENCY
