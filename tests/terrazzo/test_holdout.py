"""Closeness on images held out: against sums written out, and nothing that was held out is quantized with."""

import math

import numpy as np
import pytest
import torch

from terrazzo import holdout, results
from terrazzo.arch.graph import Preprocessing
from terrazzo.arch.schemes import Scheme
from terrazzo.quant import data, influence, quantizer
from terrazzo.quant.finetune import Settings
from terrazzo.quant.floatgraph import FloatGraph, Node
from terrazzo.sim import reference

PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.5,) * 3, std=(0.3,) * 3)
ROW = results.Row(model="none", mixture={Scheme.FIXED8: 1, Scheme.FIXED4: 3}, bits=5)


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)

    def layer(outputs, *depth, gain=1.0):
        weight = torch.randn(outputs, *depth, generator=generator) * gain * math.prod(depth) ** -0.5
        return {"weight": weight, "bias": torch.randn(outputs, generator=generator)}

    attrs = {"stride": (2, 2), "padding": (1, 1, 1, 1), "groups": 1}
    pool = {"kernel": (4, 4), "stride": (4, 4), "padding": (0, 0, 0, 0)}
    nodes = [
        Node(
            kind="conv", name="a", inputs=("input",), shape=(4, 4, 8), params=layer(8, 3, 3, 3), attrs=attrs
        ),
        Node(kind="act", name="b", inputs=("a",), shape=(4, 4, 8), attrs={"kind": "relu6"}),
        Node(kind="avgpool", name="c", inputs=("b",), shape=(1, 1, 8), attrs=pool),
        Node(kind="reshape", name="d", inputs=("c",), shape=(1, 8), attrs={"shape": (1, 8)}),
        Node(kind="linear", name="e", inputs=("d",), shape=(1, 4), params=layer(4, 8, gain=20.0)),
    ]
    return FloatGraph(name="small", input_shape=(8, 8, 3), nodes=nodes)


@pytest.fixture
def images():
    return data.open_images(np.random.default_rng(0).integers(0, 256, (26, 8, 8, 3), np.uint8), (8, 8, 3))


def seen(part):
    return {image.tobytes() for image in part}


def test_every_image_is_held_out_once(images):
    found = holdout.folds(images, 3)
    assert [len(held) for _, held in found] == [9, 9, 8]
    assert set.union(*(seen(held) for _, held in found)) == seen(images)
    for rest, held in found:
        assert not seen(rest) & seen(held) and seen(rest) | seen(held) == seen(images)


def test_closeness(network, images):
    graph, _ = quantizer.quantize(network, images, PREPROCESSING, mixture=ROW.mixture, activation_bits=4)
    tensor, divergence, equal = graph.tensor(graph.output), 0.0, 0
    for raw in images:
        x = torch.from_numpy((raw.astype(np.float64) / 255 - 0.5) / 0.3).float()
        p = np.exp(network.run(x[None]).double().numpy().reshape(-1))
        codes = reference.run(graph, reference.quantize_batch(graph, raw[None])).reshape(-1)
        q = np.exp((codes.astype(float) - tensor.zero_point) * tensor.scale)
        p, q = p / p.sum(), q / q.sum()
        divergence += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / len(images)
        equal += 100 * (p.argmax() == q.argmax()) / len(images)
    found = holdout.closeness(graph, network, images)
    assert found["divergence"] == pytest.approx(divergence, abs=1e-4) and divergence > 5e-4
    assert found["agreement"] == pytest.approx(equal, abs=0.01)


def test_what_is_held_out_is_not_quantized_or_trained_with(network, images, monkeypatch):
    used, real = [], holdout.finetune
    quantize = quantizer.quantize

    def quantized(graph, given, *rest, **options):
        used.append(seen(given))
        assert influence.PLAIN == 0.3
        return quantize(graph, given, *rest, **options)

    def finetuned(graph, teacher, given, *rest, **options):
        used[-1] |= seen(given)
        return real(graph, teacher, given, *rest, **options)

    monkeypatch.setattr(quantizer, "quantize", quantized)
    monkeypatch.setattr(holdout, "finetune", finetuned)
    before = influence.PLAIN
    training = Settings(epochs=2, batch=4, rate=3e-3)
    lines = list(holdout.study(ROW, network, PREPROCESSING, images, plain=0.3, training=training))
    assert before == influence.PLAIN
    assert [(line["fold"], line["epochs"]) for line in lines] == [(f, e) for f in (0, 1) for e in (0, 1, 2)]
    assert used == [seen(rest) for rest, _ in holdout.folds(images, 2)]
    assert lines[2]["divergence"] != lines[0]["divergence"]
