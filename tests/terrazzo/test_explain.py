"""Where cycles went: the classes add up, and name what was made slow."""

import dataclasses

import pytest

from terrazzo.arch import isa
from terrazzo.arch.errors import UserError
from terrazzo.arch.isa import Engine
from terrazzo.arch.memory import MemoryModel
from terrazzo.explain import explain
from terrazzo.sim import cycle
from terrazzo.sim.cycle import Activity

from .. import tiny

MEMORY = MemoryModel(latency=20)


def test_classes_of_every_engine_add_up():
    result = explain(tiny.program(), memory=MEMORY)
    timing = cycle.predict(tiny.program(), MEMORY)
    assert result["cycles"] == timing.cycles
    for row in result["frame"]:
        assert row["computing"] > 0 and row["idle"] >= 0
        engine = Engine[row["engine"]]
        # What is waited for is counted besides the cycles in which an instruction is under way.
        assert row["computing"] + row["draining"] + row["memory"] + row["semaphore"] <= timing.cycles
        assert row["computing"] <= timing.busy[engine]
    matrix = {row["layer"]: row for row in result["layers"] if row["engine"] == "MATRIX"}
    assert sum(row["computing"] for row in matrix.values()) == result["frame"][Engine.MATRIX]["computing"]


def test_the_array_computes_as_often_as_pairs_are_issued():
    timing = cycle.predict(tiny.program(), MEMORY)
    computing = timing.spent[:, Engine.MATRIX, Activity.COMPUTING].sum()
    assert computing == timing.busy[Engine.MATRIX] - timing.stalled[Engine.MATRIX]


def test_a_slow_memory_shows_as_memory():
    fast, slow = (
        cycle.predict(tiny.program(), dataclasses.replace(MEMORY, interval=interval)) for interval in (1, 8)
    )
    waited = [timing.spent[:, Engine.MATRIX, Activity.MEMORY].sum() for timing in (fast, slow)]
    computing = [timing.spent[:, Engine.MATRIX, Activity.COMPUTING].sum() for timing in (fast, slow)]
    assert computing[0] == computing[1]
    # The array waits for the image; the result leaves when it is idle.
    opcodes = [isa.decode(words).opcode for words in tiny.program().instructions]
    first = opcodes.index(isa.Opcode.MATRIX)
    assert waited[1] - waited[0] == slow.start[first] - fast.start[first] > 20


def test_one_layer_with_its_instructions():
    name = tiny.program().layers[-1].name
    result = explain(tiny.program(), name, memory=MEMORY)
    assert {row["layer"] for row in result["layers"]} == {name}
    assert any(row["engine"] == "MATRIX" for row in result["instructions"])
    with pytest.raises(UserError, match=r"^layer must be one of .*, not 'nothing'$"):
        explain(tiny.program(), "nothing", memory=MEMORY)
