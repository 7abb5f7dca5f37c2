"""The comparison is silent where all agree, and names the place where they do not."""

import dataclasses

import numpy as np
import pytest

from terrazzo.arch.memory import MemoryModel
from terrazzo.sim.compare import compare, first_difference
from terrazzo.sim.rtl import RtlSimulator

from .. import tiny

MEMORY = MemoryModel(latency=9, interval=2)


@pytest.fixture(scope="module")
def mutant() -> str:
    """Verilog whose vector engine subtracts its rounding constant."""
    text = tiny.verilog().replace("$signed(p) + $signed(constant", "$signed(p) - $signed(constant")
    assert text != tiny.verilog()
    return text


def check_located(result):
    found = result.difference
    assert not result.equal and result.rtl_mismatches == 2 and result.functional_mismatches == 0
    assert found.between == ("functional", "RTL") and found.image == 0 and found.expected != found.found
    first = next(layer.name for layer in tiny.program().layers if layer.op == "layernorm")
    assert found.layer == first and found.text.startswith("VECTOR ") and "op=LAYERNORM" in found.text
    assert (found.position, found.channel, found.tile) == (0, 0, 0)
    assert any(
        line.startswith(f"RTL differs from functional: image 0, layer {first}") for line in result.messages()
    )
    assert result.rtl_cycles == result.predicted_cycles, "only values are wrong"


def test_all_agree():
    result = compare(tiny.graph(), tiny.program(), tiny.codes(2), MEMORY, verilog=tiny.verilog())
    assert result.messages() == [] and result.equal
    assert result.rtl_mismatches == result.functional_mismatches == 0
    assert result.predicted_cycles == result.rtl_cycles == result.frame_cycles[1]
    assert result.rtl_layers == result.predicted_layers and len(result.rtl_layers) >= 8
    assert all(row["equal"] for row in result.rows())


def test_logs_of_writes_agree():
    """Every byte that the drain and the vector engine write is also in the functional simulator's log."""
    rtl = RtlSimulator(tiny.MACHINE, tiny.verilog(), watch=True).run(tiny.program(), tiny.codes(2), MEMORY)
    assert all(len(writes.cycles) > 20 for writes in rtl.writes) and len(rtl.writes) == 3
    assert first_difference(tiny.program(), tiny.codes(2), rtl) is None
    for writes in rtl.writes:
        writes.data[7, np.flatnonzero(writes.mask[7])[0]] ^= 1
        difference = first_difference(tiny.program(), tiny.codes(2), rtl)
        assert difference.cycle == writes.cycles[7]
        assert difference.text.startswith(writes.engine.name) and difference.tensor.startswith(writes.memory)
        writes.data[7, np.flatnonzero(writes.mask[7])[0]] ^= 1


def test_wrong_verilog_is_located(mutant):
    check_located(compare(tiny.graph(), tiny.program(), tiny.codes(2), MEMORY, verilog=mutant))


@pytest.mark.full
def test_waveform_around_the_difference(mutant, tmp_path):
    wave = tmp_path / "difference.fst"
    check_located(compare(tiny.graph(), tiny.program(), tiny.codes(2), MEMORY, verilog=mutant, wave=wave))
    assert b"trace_run_start" in wave.read_bytes()


def test_wrong_program_is_located():
    """A weight that the compiler would have damaged: functional simulator and RTL agree with each other."""
    program = tiny.program()
    weights = program.weights.copy()
    weights[np.flatnonzero(weights)[40]] ^= 0x40
    damaged = dataclasses.replace(program, weights=weights)
    result = compare(tiny.graph(), damaged, tiny.codes(2), MEMORY, verilog=tiny.verilog())
    assert not result.equal and result.functional_mismatches == result.rtl_mismatches > 0
    assert result.difference.between == ("reference", "functional")
    assert result.difference.layer in {layer.name for layer in program.layers}
    assert result.difference.expected != result.difference.found


def test_wrong_prediction_is_reported():
    result = compare(tiny.graph(), tiny.program(), tiny.codes(1), MEMORY, verilog=tiny.verilog())
    layers = {tag: (start, done + 1) for tag, (start, done) in result.predicted_layers.items()}
    late = dataclasses.replace(
        result, predicted_frames=(result.predicted_cycles + 1,), predicted_layers=layers
    )
    assert not late.equal and len(late.messages()) == 2
    assert late.messages()[0].startswith("cycles: frame 0 takes")
    assert late.messages()[1].startswith(f"cycles: layer {tiny.program().layers[0].name} runs")


def test_random_stalls_are_not_predicted():
    memory = MemoryModel(latency=3, stall=0.3, seed=4)
    result = compare(tiny.graph(), tiny.program(), tiny.codes(2), memory, verilog=tiny.verilog())
    assert result.equal and result.predicted_cycles is None
