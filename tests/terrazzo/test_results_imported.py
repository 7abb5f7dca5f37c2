"""The table of models that onnxruntime quantized, on the small network of the tests."""

import dataclasses
import shutil

import numpy as np
import onnx
import pytest

from terrazzo import onnx_layers, results, results_graphs, results_imported, results_table
from terrazzo.arch.errors import UserError
from terrazzo.boards import demo_accelerator
from terrazzo.examples.zoo import Entry
from terrazzo.quant import onnx_import, onnx_torch
from terrazzo.sim import functional

from .. import onnx_models as models

TINY = Entry(
    build=None,
    weights="",
    shape=models.SHAPE,
    resize=None,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    images="",
    calibration="",
)


class Images:
    """What `data.Images` is asked for."""

    def __init__(self, count, seed):
        self.raw = models.images(count, seed)

    def __len__(self):
        return len(self.raw)

    def take(self, index):
        return self.raw[np.asarray(index, int)]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job for either row of a tiny model, whose export is made by hand."""
    pytest.importorskip("onnxruntime")
    onnx.save(models.cnn(), tmp_path / "tiny.onnx")
    for module in (results_imported, results_graphs):
        monkeypatch.setattr(module, "CATALOGUE", {"tiny": TINY})
    rows = {
        f"tiny-{qoperator}": results_imported.Row(model="tiny", qoperator=qoperator, by_channel=True)
        for qoperator in (False, True)
    }
    monkeypatch.setattr(results_imported, "ROWS", rows)
    monkeypatch.setattr(results_imported, "MACHINES", {results_imported.MACHINE: demo_accelerator()})
    monkeypatch.setattr(results_imported, "find_spec", lambda name: True)
    monkeypatch.setattr(results, "images", lambda entry, data: (Images(40, 1), Images(80, 2)))

    def make(row):
        return results_table.Job(row=row, data=tmp_path, files=tmp_path)

    return make


@pytest.mark.parametrize("row", ["tiny-False", "tiny-True"])
def test_a_row_is_measured_against_onnxruntime(job, row):
    found = results_imported.measure(job(row))
    assert found["equal"] and found["agreement"] > 90 and found["images"] == results_imported.IMAGES
    assert found["layers"] >= 8 and found["layers_near"] == found["layers"] and found["most_codes"] == 1
    assert min(found["agreement_with_float"], found["onnxruntime_agreement_with_float"]) > 80
    assert found["attentions"] == 0 and found["least_near_percent"] == 100.0
    assert 97 < found["least_same_percent"] < 100 and found["codes"] > 10_000
    line = results_imported.table({row: found}).splitlines()[-1]
    assert line.startswith(f"| `{row}` | 64 | ") and line.endswith("| yes |")


def test_a_program_with_other_outputs_is_seen(job, monkeypatch):
    run = functional.run
    monkeypatch.setattr(functional, "run", lambda program, codes: run(program, codes) ^ 1)
    assert results_imported.measure(job("tiny-False"))["equal"] is False


def test_layers_that_differ_are_counted_apart(tmp_path):
    """A weight changed by 40 codes moves the layer that has it, and no other."""
    model = models.statically_quantized(models.cnn(), tmp_path)
    source = onnx_import.load(tmp_path / "quantized.onnx", shape=models.SHAPE)
    graph, _ = onnx_import.integer(source)
    second = [operator for operator in graph.operators if operator.op == "conv"][1]
    key = f"{second.name}/weight"
    weight = graph.constants[key].copy()
    weight[0] = np.where(weight[0] > 0, weight[0] - 40, weight[0] + 40)
    wrong = dataclasses.replace(graph, constants=graph.constants | {key: weight})
    found, _ = onnx_layers.compare(model, source, wrong, models.images(8), 8)
    far = [layer.tensor for layer in found if layer.near < 0.999 * layer.codes]
    assert far == [second.output]
    assert results_imported.summary(found, wrong)["layers_near"] == len(found) - 1


def test_a_missing_package_is_named(job, monkeypatch):
    monkeypatch.setattr(results_imported, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"onnxruntime must be installed.*terrazzo\[test\]"):
        results_imported.measure(job("tiny-False"))


def test_an_export_is_kept(job, tmp_path, monkeypatch):
    """A row whose export exists does not need torch's exporter."""
    shutil.copy(tmp_path / "tiny.onnx", tmp_path / "kept.onnx")

    def exported(*_):
        raise AssertionError("an export that exists must be kept")

    monkeypatch.setattr(onnx_torch, "export", exported)
    results_imported.measure(job("tiny-False"))
    assert (tmp_path / "tiny.onnx").read_bytes() == (tmp_path / "kept.onnx").read_bytes()
