"""Both digit models end to end on a second machine: other lanes, columns, depth, mixture and bus width; one on eight lanes."""

import pytest

from terrazzo import api
from terrazzo.arch.memory import MemoryModel
from terrazzo.boards import demo_accelerator, second_accelerator, small_accelerator
from terrazzo.compiler import compile
from terrazzo.quant import data
from terrazzo.sim import reference
from terrazzo.sim.compare import compare


def test_the_machine_differs_in_every_respect():
    first, second = demo_accelerator(), second_accelerator()
    assert first.lanes.by_scheme.keys() != second.lanes.by_scheme.keys()
    for name in ("columns", "depth", "drain", "vector", "bus_bytes"):
        assert getattr(first, name) != getattr(second, name), name


@pytest.mark.parametrize(
    "name, machine",
    [
        pytest.param("digits-vit", second_accelerator(), marks=pytest.mark.full, id="digits-vit"),
        pytest.param("digits-cnn", second_accelerator(), id="digits-cnn"),
        pytest.param("digits-cnn", small_accelerator(), marks=pytest.mark.full, id="digits-cnn-small"),
    ],
)
def test_all_simulators_agree(name, machine):
    source = api.source(name)
    graph = api.quantize(source, data.digits("train")[0][:48], machine).graph
    program = compile(graph, machine)
    images, labels = data.digits("test")
    codes = reference.quantize_batch(graph, images)
    result = compare(graph, program, codes[:2], MemoryModel(latency=35, interval=2))
    assert result.messages() == []
    classes = reference.run(graph, codes).reshape(len(codes), -1).argmax(axis=1)
    assert (classes == labels).mean() >= 0.96
