"""One tiny vision transformer all the way: torch, integer graph, program, Verilog, simulation. Read this first."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from terrazzo import compiler
from terrazzo.arch.graph import Preprocessing
from terrazzo.arch.memory import MemoryModel
from terrazzo.quant import frontend, quantizer
from terrazzo.sim import reference
from terrazzo.sim.compare import compare

from . import tiny

SHAPE = (4, 4, 1)
PREPROCESSING = Preprocessing(scale=1.0, mean=(0.5,), std=(0.5,), raw_max=1.0)


class TinyViT(nn.Module):
    """Four patches and a class token through one block of attention and MLP."""

    def __init__(self, dim: int = 8):
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 5, dim))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads=2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 16), nn.GELU(), nn.Linear(16, dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(self.norm3(x[:, 0]))


@pytest.fixture(scope="module")
def model():
    """The float graph, images, and the integer graph with the machine's mixture of row schemes."""
    torch.manual_seed(0)
    module = TinyViT().eval()
    float_graph = frontend.import_module(module, torch.randn(2, 1, 4, 4), "tiny-vit")
    images = np.random.default_rng(0).random((64, *SHAPE), dtype=np.float32)
    graph, report = quantizer.quantize(
        float_graph,
        images[:48],
        PREPROCESSING,
        mixture=tiny.MACHINE.lanes.by_scheme,
        drain=tiny.MACHINE.drain,
        execute=functools.partial(reference.run, keep=True),
    )
    return float_graph, images[48:], graph, report


def test_the_integer_graph_is_close_to_float(model):
    float_graph, images, graph, report = model
    wanted = float_graph.run((torch.from_numpy(images) - 0.5) / 0.5).flatten(1).numpy()
    codes = reference.run(graph, reference.quantize_batch(graph, images)).reshape(wanted.shape)
    found = codes * graph.tensor(graph.output).scale
    noise = np.sum((found - wanted) ** 2) / np.sum((wanted - wanted.mean(axis=0)) ** 2)
    assert noise < 0.05
    assert report.schemes.keys() >= {"FIXED8", "FIXED4"}


def test_the_verilog_computes_the_same_bits_in_the_predicted_cycles(model):
    _, images, graph, _ = model
    program = compiler.compile(graph, tiny.MACHINE)
    codes = reference.quantize_batch(graph, images[:3])
    result = compare(graph, program, codes, MemoryModel(latency=20), verilog=tiny.verilog())
    assert result.messages() == []
    assert result.rtl_mismatches == 0 and result.rtl_cycles == result.predicted_cycles
