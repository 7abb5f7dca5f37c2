"""Random graphs of published shapes: valid, of the stated shapes, and alive: values spread over their codes."""

import numpy as np

from terrazzo import synthetic
from terrazzo.arch.graph import Attention
from terrazzo.sim import reference


def test_deit_has_the_published_shapes():
    graph = synthetic.deit()
    macs = {type(o): 0 for o in graph.operators}
    for operator in graph.operators:
        macs[type(operator)] += graph.macs(operator)
    assert macs[Attention] == 12 * 2 * 197 * 197 * 192
    assert sum(macs.values()) == 196 * 768 * 192 + 12 * (12 * 197 * 192**2) + macs[Attention] + 192 * 1000


def test_values_spread_over_their_codes():
    graph = synthetic.deit(24, 2, 3, image=32, patch=8)
    codes = np.random.default_rng(0).integers(-128, 128, (2, 32, 32, 3))
    tensors = reference.run(graph, codes, keep=True)
    assert all(len(np.unique(tensors[t.name])) > 10 for t in graph.tensors)
