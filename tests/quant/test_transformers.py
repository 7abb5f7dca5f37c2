"""Vision models of Hugging Face transformers, unchanged: imported, equal to torch, quantized, or refused with reasons."""

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs transformers: install the extra 'models'")

from terrazzo.boards import BOARDS, fit  # noqa: E402
from terrazzo.examples import table  # noqa: E402
from terrazzo.examples.architectures import ARCHITECTURES  # noqa: E402
from terrazzo.quant.frontend import check, import_module  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
"""Warnings of the library about its own code are not ours."""

REFUSED = {
    "bit": {"group_norm"},
    "convnext-v2": {"linalg_vector_norm", "div"},
    "mobilevit-v2": {"group_norm"},
    "poolformer": {"group_norm", "avg_pool2d"},
    "swiftformer": {"softmax"},
}
"""Operators that `check` names."""
FAST = ("deit", "clip", "swin", "efficientnet")
DEEP = ("resnet", "mobilenet-v1", "mobilenet-v2", "efficientnet", "mobilevit", "levit")
"""Convolutions with random weights over few pixels: 64 images do not determine their rounding."""
IMPORTED = [name for name in ARCHITECTURES if name not in REFUSED]
NODES = {
    "vit": {"attention": 2, "layernorm": 5, "tokens": 1, "gather": 0},
    "dinov2-swiglu": {"multiply": 2, "concat": 1},
    "dinov3": {"attention": 2, "multiply": 8, "linear": 16},
    "clip": {"attention": 2, "act": 2},
    "beit": {"attention": 2, "gather": 0},
    "swin": {"attention": 4, "concat": 1},
    "resnet": {"conv": 16, "linear": 1},
    "regnet": {"multiply": 4},
    "mobilenet-v1": {"conv": 27, "act": 27},
    "mobilenet-v2": {"conv": 52, "add": 10},
    "convnext": {"layernorm": 9, "multiply": 0},
    "efficientnet": {"multiply": 8},
    "mobilevit": {"attention": 9, "concat": 3},
    "hgnet-v2": {"concat": 5},
}
"""How many nodes of a kind some architectures must have."""


def _some(names):
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.full) for name in names]


@pytest.mark.parametrize("name", _some(IMPORTED))
def test_the_import_equals_torch(name):
    architecture = ARCHITECTURES[name]
    module, size = architecture.build(), architecture.size
    graph = import_module(module, torch.randn(1, 3, size, size))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        output = module(images)
    wanted = next(output[key] for key in ("logits", "pooler_output", "image_embeds") if key in output)
    found = graph.run(images.permute(0, 2, 3, 1).contiguous()).reshape(wanted.shape)
    assert wanted.std() > 0.01 and (wanted[0] - wanted[1]).abs().max() > 0.01, (
        "the outputs must say something"
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())
    for kind, count in NODES.get(name, {}).items():
        assert sum(node.kind == kind for node in graph.nodes) == count, kind


@pytest.mark.parametrize("name", _some(REFUSED))
def test_everything_unsupported_is_named(name):
    architecture = ARCHITECTURES[name]
    findings = check(architecture.build(), torch.randn(1, 3, architecture.size, architecture.size))
    assert {finding.op for finding in findings} == REFUSED[name]
    assert all(finding.path and finding.reason and finding.remedy for finding in findings)


@pytest.mark.parametrize("name", _some(IMPORTED))
def test_integers_follow_the_float_model(name):
    """Measured on images that calibration did not see; where the compiler takes it, the program agrees."""
    result = table.row(name, ARCHITECTURES[name], fit(BOARDS[table.BOARD], {}))
    assert result.imported and result.quantized, result.reasons
    assert result.sqnr_db > (4 if name in DEEP else 15), result
    assert result.variation_db > (0 if name in DEEP else 10), result
    assert result.equal is not False or not result.compiled, result
