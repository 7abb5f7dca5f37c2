"""The digit models in integers: as accurate as in float on all held-out images, and the same in onnxruntime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from terrazzo.arch.graph import Preprocessing
from terrazzo.arch.schemes import Scheme
from terrazzo.quant import data, frontend, onnx_export
from terrazzo.quant.calibrate import preprocess
from terrazzo.quant.quantizer import quantize
from terrazzo.sim import reference

ROOT = Path(__file__).parents[2]
F8, F4, P4, S4 = Scheme.FIXED8, Scheme.FIXED4, Scheme.POT4, Scheme.SP2_4
MIXTURES = {
    "fixed8": ({F8: 16}, 1.0),
    "8:4:2:2": ({F8: 8, F4: 4, P4: 2, S4: 2}, 2.0),
    "8:4:4:0": ({F8: 8, F4: 4, P4: 4}, 2.0),
    "4:2:2:0:4:4": ({F8: 4, F4: 2, P4: 2, Scheme.TERNARY: 4, Scheme.BINARY: 4}, 2.0),
}
"""Lanes, and the points of top-1 that may be lost."""


@pytest.fixture(scope="module", params=["vit", "cnn"])
def digits_model(request):
    """(float graph, preprocessing) of a trained model."""
    from terrazzo.examples.digits import models

    module = models.build(request.param).eval()
    module.load_state_dict(load_file(ROOT / "examples" / "digits" / f"{request.param}.safetensors"))
    preprocessing = Preprocessing(
        scale=models.SCALE, mean=(models.MEAN,), std=(models.STD,), raw_max=models.RAW_MAX
    )
    return frontend.import_module(module, torch.zeros(1, 1, 8, 8), request.param), preprocessing


@pytest.mark.parametrize(
    "mixture",
    [pytest.param(name, marks=pytest.mark.full if name.count(":") > 3 else ()) for name in MIXTURES],
)
def test_top1_and_onnxruntime(digits_model, mixture):
    model, preprocessing = digits_model
    lanes, points = MIXTURES[mixture]
    graph, report = quantize(model, data.digits("train")[0][:128], preprocessing, mixture=lanes, drain=2)
    images, labels = data.digits("test")
    codes = reference.quantize_batch(graph, images)
    output = reference.run(graph, codes)
    real = model.run(preprocess(images, preprocessing)).numpy().reshape(len(images), -1)
    float_top1 = (real.argmax(axis=1) == labels).mean()
    integer_top1 = (output.reshape(len(images), -1).argmax(axis=1) == labels).mean()
    assert float_top1 >= 0.97 and 100 * (float_top1 - integer_top1) <= points
    if mixture != "fixed8":
        four_bit = sum(count for scheme, count in report.schemes.items() if scheme != "FIXED8")
        assert four_bit >= 0.4 * sum(report.schemes.values())
        assert report.schemes["POT4"] and report.schemes["FIXED4"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        onnx_export.model(graph).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    assert np.array_equal(session.run(None, {graph.input: codes[:96]})[0], output[:96])
