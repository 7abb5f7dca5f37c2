"""Positions in the order of the windows: the same values with fewer gathers."""

import pytest
import torch

from terrazzo.quant.floatgraph import FloatGraph, Node
from terrazzo.quant.sequences import in_sequence

SIDE, CHANNELS = 4, 6


class Blocks:
    """A graph of attention in windows, node by node."""

    def __init__(self):
        self.nodes, self.random = [], torch.Generator().manual_seed(3)

    def add(self, kind: str, *inputs: str, shape=(SIDE * SIDE, CHANNELS), **fields) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(Node(kind=kind, name=name, inputs=inputs, shape=shape, **fields))
        return name

    def linear(self, x: str, channels: int = CHANNELS, shape=None, width: int = CHANNELS) -> str:
        weight = torch.randn(channels, width, generator=self.random) / width**0.5
        params = {"weight": weight, "bias": torch.randn(channels, generator=self.random)}
        return self.add("linear", x, shape=shape or (SIDE * SIDE, channels), params=params)

    def gather(self, x: str, index: torch.Tensor, shape=None) -> str:
        return self.add("gather", x, shape=shape or (len(index), CHANNELS), params={"index": index})

    def block(self, x: str, order: torch.Tensor) -> str:
        """Attention in windows of four positions in an order, and back, as Swin has it."""
        params = {"gamma": torch.rand(CHANNELS, generator=self.random) + 0.5, "beta": torch.zeros(CHANNELS)}
        y = self.add("layernorm", x, params=params, attrs={"eps": 1e-5})
        y = self.gather(y, order)
        q, k, v = (self.linear(y) for _ in range(3))
        y = self.add("attention", q, k, v, attrs={"heads": 2, "scale": 0.5, "windows": 4})
        y = self.linear(self.gather(y, order.argsort()))
        x = self.add("add", x, y)
        constant = torch.randn(SIDE * SIDE, CHANNELS, generator=self.random)
        return self.add("add", x, params={"constant": constant})

    def graph(self) -> FloatGraph:
        return FloatGraph(name="blocks", input_shape=(SIDE, SIDE, 3), nodes=self.nodes)


def windows(shift: int) -> torch.Tensor:
    numbers = torch.arange(SIDE * SIDE).reshape(SIDE, SIDE).roll((-shift, -shift), (0, 1))
    return numbers.reshape(2, 2, 2, 2).transpose(1, 2).reshape(-1)


def start(b: Blocks) -> str:
    x = b.linear("input", shape=(SIDE, SIDE, CHANNELS), width=3)
    return b.add("reshape", x, attrs={"shape": (SIDE * SIDE, CHANNELS)})


def gathers(graph: FloatGraph) -> list[Node]:
    return [node for node in graph.nodes if node.kind == "gather"]


def assert_same(graph: FloatGraph, made: FloatGraph) -> None:
    x = torch.randn(2, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    wanted, found = graph.run(x), made.run(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted)
    assert len({node.name for node in made.nodes}) == len(made.nodes)


def test_two_blocks_move_the_stream_once_each():
    """Two gathers into windows and one back, not two for each block."""
    b = Blocks()
    x = b.block(b.block(start(b), windows(0)), windows(1))
    x = b.add("reshape", x, shape=(SIDE, SIDE, CHANNELS), attrs={"shape": (SIDE, SIDE, CHANNELS)})
    graph = b.graph()
    made = in_sequence(graph)
    assert_same(graph, made)
    assert len(gathers(graph)) == 4 and len(gathers(made)) == 3


def test_a_mean_and_a_selection_take_any_order():
    """Neither the mean of all positions nor the merging of neighbours needs the way back."""
    b = Blocks()
    x = b.block(start(b), windows(0))
    quarter = b.gather(x, torch.arange(0, SIDE * SIDE, 3))
    mean = {"kernel": (SIDE * SIDE, 1), "stride": (1, 1), "padding": (0, 0, 0, 0)}
    mean = b.add("avgpool", x, shape=(1, CHANNELS), attrs=mean)
    both = b.add("concat", quarter, mean, shape=(7, CHANNELS), attrs={"axis": "positions"})
    graph = b.graph()
    made = in_sequence(graph)
    assert_same(graph, made)
    assert both == graph.nodes[-1].name and len(gathers(made)) == 2


@pytest.mark.parametrize("seed", range(6))
def test_random_orders(seed):
    """Permutations of every kind between layers of single positions, read by several."""
    b, random = Blocks(), torch.Generator().manual_seed(seed)
    values = [start(b)]
    for _ in range(8):
        x = values[int(torch.randint(len(values), (), generator=random))]
        y = values[int(torch.randint(len(values), (), generator=random))]
        match int(torch.randint(4, (), generator=random)):
            case 0:
                values.append(b.block(x, torch.randperm(SIDE * SIDE, generator=random)))
            case 1:
                values.append(b.gather(x, torch.randperm(SIDE * SIDE, generator=random)))
            case 2:
                values.append(b.add("add", x, y))
            case 3:
                values.append(b.linear(b.add("multiply", x, y)))
    graph = b.graph()
    assert_same(graph, in_sequence(graph))


def test_a_graph_without_permutations_stays():
    b = Blocks()
    b.gather(start(b), torch.tensor([1, 2]))
    graph = b.graph()
    assert in_sequence(graph) is graph
