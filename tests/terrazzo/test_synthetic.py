"""Random graphs of published shapes: valid, of the stated shapes, and alive: values spread over their codes."""

import numpy as np
import pytest

from terrazzo import synthetic
from terrazzo.arch.graph import Attention
from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.sim import reference


def test_deit_has_the_published_shapes():
    graph = synthetic.deit()
    macs = {type(o): 0 for o in graph.operators}
    for operator in graph.operators:
        macs[type(operator)] += graph.macs(operator)
    assert macs[Attention] == 12 * 2 * 197 * 197 * 192
    assert sum(macs.values()) == 196 * 768 * 192 + 12 * (12 * 197 * 192**2) + macs[Attention] + 192 * 1000


def test_cnns_have_the_published_shapes():
    """Multiply-accumulates of He et al. 2016 (1.8e9) and Sandler et al. 2018 (300e6)."""
    for graph, macs in ((synthetic.resnet18(bits=5), 1.814e9), (synthetic.mobilenet_v2(bits=5), 0.3008e9)):
        assert sum(graph.macs(o) for o in graph.operators) == pytest.approx(macs, rel=2e-3)


@pytest.mark.parametrize("make", [synthetic.resnet18, synthetic.mobilenet_v2])
def test_cnns_are_alive_and_within_their_bits(make):
    graph = synthetic.dealt(make(image=64, bits=5), {Scheme.FIXED8: 2, Scheme.FIXED4: 38}, 2)
    codes = np.random.default_rng(0).integers(-128, 128, (1, 64, 64, 3))
    tensors = reference.run(graph, codes, keep=True)
    for tensor in graph.tensors:
        found = tensors[tensor.name]
        assert len(np.unique(found)) > 3
        assert (
            tensor.dtype == "s16" or tensor.name == "image" or ((found >= -16).all() and (found <= 15).all())
        )


def test_rows_are_dealt_in_blocks():
    graph = synthetic.dealt(synthetic.deit(96, 1, 1, image=32), {Scheme.FIXED8: 8, Scheme.FIXED4: 16}, 4)
    for operator in graph.operators:
        if f"{operator.name}/scheme" not in graph.constants:
            continue
        schemes, weight = graph.constant(operator, "scheme"), graph.constant(operator, "weight")
        whole = len(schemes) // 24 * 24
        blocks = schemes[:whole].reshape(-1, 6, 4)
        assert ((blocks == Scheme.FIXED8).sum(axis=1) == 2).all() and (schemes[whole:] == Scheme.FIXED8).all()
        assert np.isin(weight[schemes == Scheme.FIXED4], codebook(Scheme.FIXED4)).all()
    codes = np.random.default_rng(0).integers(-128, 128, (1, 32, 32, 3))
    tensors = reference.run(graph, codes, keep=True)
    assert all(len(np.unique(tensors[t.name])) > 5 for t in graph.tensors)


def test_values_spread_over_their_codes():
    graph = synthetic.deit(24, 2, 3, image=32, patch=8)
    codes = np.random.default_rng(0).integers(-128, 128, (2, 32, 32, 3))
    tensors = reference.run(graph, codes, keep=True)
    assert all(len(np.unique(tensors[t.name])) > 10 for t in graph.tensors)
