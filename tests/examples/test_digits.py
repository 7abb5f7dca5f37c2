"""The shipped digits models: their accuracy, their import, and that training makes what is shipped."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from terrazzo.quant.data import digits, load_weights
from terrazzo.quant.frontend import check, import_module

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


def _load(name: str, monkeypatch) -> object:
    """A file of examples/digits as `python examples/digits/NAME.py` sees it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def models(monkeypatch):
    return _load("models", monkeypatch)


@pytest.fixture(params=["vit", "cnn"])
def trained(request, models):
    """A shipped model, and the held-out images as it expects them, with labels."""
    images, labels = digits("test")
    images = (torch.from_numpy(images).permute(0, 3, 1, 2) * models.SCALE - models.MEAN) / models.STD
    model = load_weights(models.build(request.param), FOLDER / f"{request.param}.safetensors")
    return model.eval(), images, torch.from_numpy(labels)


@torch.no_grad()
def test_held_out_accuracy(trained):
    model, images, labels = trained
    assert (model(images).argmax(1) == labels).double().mean() >= 0.97


@torch.no_grad()
def test_import_equals_torch(trained):
    model, images, _ = trained
    assert check(model, images[:1]) == []
    graph = import_module(model, images[:1])
    found = graph.run(images.permute(0, 2, 3, 1).contiguous()).reshape(len(images), 10)
    torch.testing.assert_close(found, model(images), rtol=1e-4, atol=1e-4)
    assert graph.input_shape == (8, 8, 1)


def test_models_have_the_operators_that_they_are_to_show(models):
    sample = torch.zeros(1, 1, 8, 8)
    vit = import_module(models.DigitsViT(), sample)
    kinds = [node.kind for node in vit.nodes]
    assert kinds[:3] == ["conv", "tokens", "add"] and kinds.count("attention") == 4
    assert kinds.count("layernorm") == 9 and "blocks.3.attn.qkv.v" in {node.name for node in vit.nodes}
    cnn = import_module(models.DigitsCNN(), sample)
    kinds = [node.kind for node in cnn.nodes]
    assert {"maxpool", "avgpool", "add", "linear"} <= set(kinds)
    convolutions = [node for node in cnn.nodes if node.kind == "conv"]
    assert {node.attrs["stride"] for node in convolutions} == {(1, 1), (2, 2)}
    assert {node.attrs["groups"] for node in convolutions} == {1, 64}
    assert {node.attrs["kind"] for node in cnn.nodes if node.kind == "act"} == {"relu", "relu6"}


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_weights_are_small(name):
    assert (FOLDER / f"{name}.safetensors").stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["vit", "cnn"])
def test_training_learns_and_repeats(name, models, monkeypatch, tmp_path, capsys):
    train = _load("train", monkeypatch)
    monkeypatch.setitem(train.EPOCHS, name, 2)
    state = torch.random.get_rng_state()
    first, second = train.train(name).state_dict(), train.train(name).state_dict()
    torch.random.set_rng_state(state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    output = tmp_path / "w.safetensors"
    monkeypatch.setattr(sys, "argv", ["train.py", name, str(output)])
    train.main()
    assert f"{name}: held-out top-1 " in capsys.readouterr().out
    load_weights(models.build(name), output)
