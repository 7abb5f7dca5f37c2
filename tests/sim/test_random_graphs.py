"""Random small graphs, awkward sizes included, through every simulator down to the Verilog."""

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from terrazzo import compiler
from terrazzo.arch.memory import MemoryModel
from terrazzo.sim.compare import compare

from .. import tiny
from ..graphs import random_codes, random_graph
from ..moves import moving_graph

MEMORIES = st.builds(
    MemoryModel,
    latency=st.integers(1, 200),
    interval=st.integers(1, 4),
    refresh_cycles=st.integers(0, 20),
    refresh_period=st.integers(21, 400),
    stall=st.sampled_from([0.0, 0.0, 0.1, 0.4]),
    seed=st.integers(0, 1000),
)


@given(seed=st.integers(0, 10_000), memory=MEMORIES)
@settings(
    max_examples=16,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_all_simulators_agree(seed, memory):
    """Outputs always; cycles wherever the memory is deterministic."""
    agree(random_graph(seed, tiny.MACHINE), seed, memory)


@given(seed=st.integers(0, 10_000), memory=MEMORIES)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_all_simulators_agree_on_moves(seed, memory):
    """Gathers, concatenation, products, windows, biases, dilation."""
    agree(moving_graph(seed, tiny.MACHINE), seed, memory)


def agree(graph, seed, memory):
    program = compiler.compile(graph, tiny.MACHINE)
    result = compare(graph, program, random_codes(graph, 2, seed), memory, verilog=tiny.verilog())
    assert result.messages() == []
    assert (result.predicted_cycles is None) == (memory.stall > 0)
