"""Functions of published systems in Verilog: the same hardware with other tables."""

import numpy as np
import pytest
import torch

from terrazzo import compiler
from terrazzo.arch.memory import MemoryModel
from terrazzo.quant import frontend, quantizer
from terrazzo.sim import reference
from terrazzo.sim.compare import compare

from .. import tiny
from ..test_tiny import PREPROCESSING, SHAPE, TinyViT


@pytest.mark.parametrize("functions", ["i-vit", "heatvit"])
def test_the_verilog_computes_published_functions(functions):
    torch.manual_seed(0)
    float_graph = frontend.import_module(TinyViT().eval(), torch.randn(2, 1, 4, 4), "tiny-vit")
    images = np.random.default_rng(0).random((34, *SHAPE), dtype=np.float32)
    graph, _ = quantizer.quantize(
        float_graph,
        images[:32],
        PREPROCESSING,
        mixture=tiny.MACHINE.lanes.by_scheme,
        drain=tiny.MACHINE.drain,
        functions=functions,
    )
    program = compiler.compile(graph, tiny.MACHINE)
    codes = reference.quantize_batch(graph, images[32:])
    result = compare(graph, program, codes, MemoryModel(latency=20), verilog=tiny.verilog())
    assert result.messages() == []
    assert result.rtl_mismatches == 0 and result.rtl_cycles == result.predicted_cycles
