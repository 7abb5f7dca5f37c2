"""Both digit models end to end on a second machine: other lanes, columns, depth, mixture and bus width."""

import pytest

from terrazzo import api
from terrazzo.arch.memory import MemoryModel
from terrazzo.boards import demo_accelerator, second_accelerator
from terrazzo.compiler import compile
from terrazzo.quant import data
from terrazzo.sim import reference
from terrazzo.sim.compare import compare


def test_the_machine_differs_in_every_respect():
    first, second = demo_accelerator(), second_accelerator()
    assert first.lanes.by_scheme.keys() != second.lanes.by_scheme.keys()
    for name in ("columns", "depth", "drain", "vector", "bus_bytes"):
        assert getattr(first, name) != getattr(second, name), name


@pytest.mark.parametrize("name", [pytest.param("digits-vit", marks=pytest.mark.full), "digits-cnn"])
def test_all_simulators_agree(name):
    machine, source = second_accelerator(), api.source(name)
    graph = api.quantize(source, data.digits("train")[0][:48], machine).graph
    program = compile(graph, machine)
    images, labels = data.digits("test")
    codes = reference.quantize_batch(graph, images)
    result = compare(graph, program, codes[:2], MemoryModel(latency=35, interval=2))
    assert result.messages() == []
    classes = reference.run(graph, codes).reshape(len(codes), -1).argmax(axis=1)
    assert (classes == labels).mean() >= 0.96
