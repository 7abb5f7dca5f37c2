"""Whole networks at full size on the ZCU102's default machine and on a second one of 4,096 multipliers."""

import functools

import numpy as np
import pytest

from terrazzo.compiler import Compiled, compiled
from terrazzo.hw import top
from terrazzo.sim import functional, reference
from terrazzo.sim.compare import compare

from .. import models
from ..graphs import random_codes

SMALL, LARGE = ("mobilenet-v1-0.25", "resnet20"), ("deit-tiny", "mobilenet-v2")


@functools.cache
def network(model: str, machine: str) -> tuple:
    accelerator = models.MACHINES[machine]
    graph = models.MODELS[model](lanes=accelerator.lanes, drain=accelerator.drain)
    return graph, compiled(graph, accelerator)


def assert_exact(model: str, machine: str) -> Compiled:
    graph, found = network(model, machine)
    codes = random_codes(graph, 1)
    outputs = functional.run(found.program, codes)
    expected = np.asarray(reference.run(graph, codes)).reshape(outputs.shape)
    np.testing.assert_array_equal(outputs, expected)
    assert len(np.unique(expected)) > 9, "the outputs say something"
    return found


@pytest.mark.parametrize("model", SMALL)
def test_network(model):
    found = assert_exact(model, "zcu102")
    assert found.traffic.stored == 0 and found.gap == 0


@pytest.mark.full
@pytest.mark.parametrize("machine", models.MACHINES)
@pytest.mark.parametrize("model", LARGE)
def test_large_network(model, machine):
    """No activation leaves the chip between input and output, and a frame moves less than all weights once."""
    found = assert_exact(model, machine)
    assert found.traffic.stored == found.traffic.loaded == 0 and found.gap == 0
    assert found.traffic.frame < found.traffic.bound


@pytest.mark.full
@pytest.mark.parametrize("machine", models.MACHINES)
def test_whole_frames_in_verilog(machine):
    """Two images of each large network: the bits of the reference in the predicted number of cycles."""
    verilog = top.verilog(models.MACHINES[machine])
    for model in LARGE:
        graph, found = network(model, machine)
        result = compare(graph, found.program, random_codes(graph, 2), verilog=verilog)
        assert result.messages() == []
        assert result.rtl_cycles == result.predicted_cycles
