"""Functions of I-ViT and HeatViT: what quantization makes of them, and that they train through the same operators."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from terrazzo import compiler
from terrazzo.arch.graph import Attention, LayerNorm, Preprocessing
from terrazzo.arch.published import EXP_TABLES
from terrazzo.arch.schemes import Scheme
from terrazzo.boards import demo_accelerator
from terrazzo.quant import data, frontend
from terrazzo.quant.finetune import Settings, finetune
from terrazzo.quant.floatgraph import ACTIVATIONS
from terrazzo.quant.quantizer import quantize
from terrazzo.quant.trainable import Trainable
from terrazzo.quant.units import QuantizeError
from terrazzo.sim import functional, reference

from .. import literal
from .test_onnx_export import differing
from .test_qat import shaken

PUBLISHED = ("i-vit", "heatvit")
FIXED8 = {Scheme.FIXED8: 4}


@pytest.mark.parametrize("kind", ["polynomial_gelu", "plan_sigmoid"])
def test_heatvits_functions_are_its_equations(kind):
    x = np.linspace(-8, 8, 1601)
    found = ACTIVATIONS[kind](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, [getattr(literal, kind)(v) for v in x.tolist()], atol=5e-5)


def attributes(graph, kind):
    return [operator for operator in graph.operators if isinstance(operator, kind)]


@pytest.fixture(scope="module")
def digits():
    """The float digits ViT and its preprocessing."""
    from terrazzo.examples.digits import models

    module = models.build("vit").eval()
    module.load_state_dict(load_file(Path(__file__).parents[2] / "examples" / "digits" / "vit.safetensors"))
    preprocessing = Preprocessing(
        scale=models.SCALE, mean=(models.MEAN,), std=(models.STD,), raw_max=models.RAW_MAX
    )
    return frontend.import_module(module, torch.zeros(1, 1, 8, 8), "vit"), preprocessing


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request, digits):
    """(family, float graph, integer graph)."""
    machine = demo_accelerator()
    graph, _ = quantize(
        digits[0],
        data.digits("train")[0][:64],
        digits[1],
        mixture=machine.lanes.by_scheme,
        drain=machine.drain,
        functions=request.param,
    )
    return request.param, digits[0], graph


def test_tables_hold_the_published_functions(published):
    family, _, graph = published
    exp = {"i-vit": "shift", "heatvit": "polynomial"}[family]
    for operator in attributes(graph, Attention):
        np.testing.assert_array_equal(graph.constant(operator, "exp"), EXP_TABLES[exp]())
    norms = attributes(graph, LayerNorm)
    assert norms and all((operator.eps == 1) == (family == "i-vit") for operator in norms)
    tables = [operator for operator in graph.operators if f"{operator.name}/table" in graph.constants]
    assert tables
    for operator in tables:
        y = graph.tensor(operator.output)
        real = (graph.constant(operator, "table").astype(float) - y.zero_point) * y.scale
        # GELU ends at 0 on the left and at x on the right, HeatViT's at x / 4 and at 3 x / 4
        assert (abs(real[0]) < 0.1) == (family == "i-vit")


def test_the_layers_behind_make_up_for_the_functions(published):
    """Untrained, with halved softmax and another GELU, the answers are still those of the float model."""
    _, _, graph = published
    images, labels = data.digits("test")
    output = reference.run(graph, reference.quantize_batch(graph, images)).reshape(len(images), -1)
    assert (output.argmax(axis=1) == labels).mean() >= 0.96


def test_without_fitted_layers_the_answers_are_lost(digits, monkeypatch, unfitted):
    unfitted(monkeypatch)
    train, (images, labels) = data.digits("train")[0][:64], data.digits("test")
    graph, _ = quantize(digits[0], train, digits[1], mixture=FIXED8, functions="heatvit")
    output = reference.run(graph, reference.quantize_batch(graph, images)).reshape(len(images), -1)
    assert (output.argmax(axis=1) == labels).mean() < 0.8


def test_programs_compute_them(published):
    _, _, graph = published
    codes = reference.quantize_batch(graph, data.digits("test")[0][:4])
    found = functional.run(compiler.compile(graph, demo_accelerator()), codes)
    expected = reference.run(graph, codes)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_their_onnx_export_is_bit_identical(published):
    _, _, graph = published
    assert differing(graph, reference.quantize_batch(graph, data.digits("test")[0][:4])) == []


def test_training_reduces_the_loss_and_is_the_reference(published, digits):
    family, teacher, graph = published
    images = data.digits("train")[0]
    model = Trainable(graph)
    with torch.no_grad():
        for gains in model.gains.values():
            gains += 0.5 * torch.randn(gains.shape, generator=torch.Generator().manual_seed(1)).double()
    found = finetune(model.result(), teacher, images[:384], Settings(epochs=3, batch=32, rate=0.01))
    assert found.losses[-1] < 0.5 * found.losses[0], family
    trained = Trainable(found.graph)
    codes = reference.quantize_batch(found.graph, data.digits("test")[0][:64])
    output = trained.codes_of(torch.from_numpy(codes.astype(np.float32))).detach().numpy()
    np.testing.assert_array_equal(output, reference.run(trained.result(), codes))
    np.testing.assert_array_equal(output, reference.run(found.graph, codes))


@pytest.mark.parametrize("functions", PUBLISHED)
def test_trainable_graphs_are_the_reference(functions, gallery, plain_preprocessing, raw_images):
    model = gallery(5)
    images = raw_images(12, model.input_shape, 5)
    graph, _ = quantize(
        model,
        images,
        plain_preprocessing(model.input_shape[-1]),
        mixture=FIXED8,
        functions=functions,
    )
    codes = reference.quantize_batch(graph, images)
    changed = shaken(Trainable(graph), 5)
    found = changed.codes_of(torch.from_numpy(codes.astype(np.float32))).detach().numpy()
    np.testing.assert_array_equal(found, reference.run(changed.result(), codes))


def test_shift_gelu_names_the_layers_that_it_cannot_take(gallery_vit, plain_preprocessing, raw_images):
    model = gallery_vit(1)
    act = next(node for node in model.nodes if node.kind == "act")
    layer = next(node for node in model.nodes if node.name == act.inputs[0])
    layer.params["weight"] *= 6
    images = raw_images(12, model.input_shape)
    arguments = model, images, plain_preprocessing(3)
    with pytest.raises(QuantizeError, match=rf"^{act.name}: ShiftGELU .* at most 9.4, not 26"):
        quantize(*arguments, mixture=FIXED8, functions="i-vit")
    for functions in ("exact", "heatvit"):
        quantize(*arguments, mixture=FIXED8, functions=functions)


def test_unknown_functions(gallery_vit, plain_preprocessing, raw_images):
    model = gallery_vit(1)
    with pytest.raises(QuantizeError, match="functions must be one of exact, i-vit, heatvit, not 'ibert'"):
        quantize(
            model,
            raw_images(2, model.input_shape),
            plain_preprocessing(3),
            mixture=FIXED8,
            functions="ibert",
        )
