"""A machine of thousands of multipliers: clean Verilog, and both digit models through it, bit for bit and to the cycle."""

import functools

import pytest

from terrazzo import api, compiler
from terrazzo.boards import large_accelerator
from terrazzo.hw import top, verilator
from terrazzo.hw.verilog import module_instances
from terrazzo.quant import data, frontend, quantizer
from terrazzo.sim import reference
from terrazzo.sim.compare import compare

MACHINE = large_accelerator()
CALIBRATION_IMAGES = 16
"""Few: the array must compute what the integer graph says, however accurate that is."""


@functools.cache
def verilog() -> str:
    return top.verilog(MACHINE)


def test_generates_each_part_once():
    """Rows, columns and outputs are instances of few modules, and Verilator has nothing to say."""
    assert MACHINE.multipliers >= 2048
    instances = module_instances(verilog())
    rows = [count for name, count in instances.items() if name.startswith(f"{top.MODULE}_row")]
    lanes = MACHINE.lanes
    assert sorted(rows) == sorted([lanes.fixed8 // 2, lanes.fixed4, lanes.pot4, lanes.sp2_4])
    assert instances[f"{top.MODULE}_column"] == MACHINE.columns
    assert instances[f"{top.MODULE}_output"] == MACHINE.columns * MACHINE.drain
    assert instances[f"{top.MODULE}_requantizer"] == MACHINE.columns * MACHINE.vector
    assert verilator.lint(verilog()) == []


@pytest.mark.full
@pytest.mark.parametrize("name", ["digits-vit", "digits-cnn"])
def test_digit_model(name):
    """Reference, functional simulator, cycle model and Verilog agree on an image, rows in all schemes."""
    model = api.source(name)
    graph, _ = quantizer.quantize(
        frontend.import_module(model.module, model.sample, name),
        data.digits("train")[0][:CALIBRATION_IMAGES],
        model.preprocessing,
        mixture=MACHINE.lanes.by_scheme,
        drain=MACHINE.drain,
    )
    program = compiler.compile(graph, MACHINE)
    codes = reference.quantize_batch(graph, data.digits("test")[0][:1])
    result = compare(graph, program, codes, verilog=verilog())
    assert result.messages() == []
    assert result.equal
    assert result.rtl_cycles == result.predicted_cycles
