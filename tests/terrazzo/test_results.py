"""The table of accuracies: what is kept, what is met, and what stops it."""

import dataclasses
import json

import numpy as np
import pytest

from terrazzo import results, results_table
from terrazzo.examples.zoo import CATALOGUE

DOCUMENT = "# Results\n\nbefore\n\n<!-- accuracy: begin -->\nold\n<!-- accuracy: end -->\n\nafter\n"


def figures(**changes):
    return {
        "model": "resnet20",
        "rows_percent": {"FIXED8": 5.0, "POT4": 95.0},
        "activation_bits": 8,
        "calibration_images": 512,
        "images": 500,
        "float_top1": 91.0,
        "integer_top1": 90.6,
        "agreement": 97.0,
        "target_lost": 0.4,
        "target_agreement": None,
        "quantize_seconds": 9.0,
        "quantize_processor_seconds": 8.0,
        "quantize_peak_mib": 500,
    } | changes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for TERRAZZO_DATA that holds nothing."""
    monkeypatch.setenv("TERRAZZO_DATA", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, "yes"),
        ({"integer_top1": 90.4}, "no"),
        ({"integer_top1": 91.8}, "yes"),
        ({"target_agreement": 97.0}, "yes"),
        ({"target_agreement": 97.2}, "no"),
        ({"target_lost": None}, "reported"),
    ],
)
def test_what_is_met(changes, met):
    line = results.table({"row": figures(**changes)}).splitlines()[-1]
    assert f" | {met} | " in line


def test_rows_that_exist_are_kept_and_the_document_around_the_table_too(folder, monkeypatch):
    def measured(*_, **__):
        raise AssertionError("a row that exists must not be measured")

    monkeypatch.setattr(results_table.subprocess, "run", measured)
    out, docs = folder / "results.json", folder / "results.md"
    out.write_text(json.dumps({"accuracy": {name: figures() for name in results.ROWS}, "other": 7}))
    docs.write_text(DOCUMENT)
    before = out.read_text()
    assert results.main(["--out", str(out), "--docs", str(docs)]) == 0
    text = docs.read_text()
    assert out.read_text() == before and "old" not in text
    assert text.startswith("# Results\n\nbefore") and text.endswith("after\n")
    assert all(f"| `{name}` | resnet20 | FIXED8 5 POT4 95 | A8 |" in text for name in results.ROWS)


def test_no_image_is_in_both_sets(folder):
    x = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    (folder / "cifar10").mkdir()
    np.savez(folder / "cifar10/test500.npz", x=x[:500], y=np.zeros(500, np.int64))
    np.savez(folder / "cifar10/train2000.npz", x=np.concatenate([x[500:]] * 6), y=np.zeros(600, np.int64))
    calibration, images = results.images(CATALOGUE["resnet20"], folder)
    assert len(calibration) == results.CIFAR_CALIBRATION_IMAGES and len(images) == 500
    seen = {image.tobytes() for image in calibration}
    assert not seen & {image.tobytes() for image in images}


def test_models_without_a_training_set_train_on_what_they_calibrate_on(folder):
    x = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "all.npz", x=x, y=np.zeros(200, np.int64))
    entry = dataclasses.replace(CATALOGUE["resnet20"], images="all.npz", calibration=None)
    seen = {image.tobytes() for image in results.training_images(entry, folder)}
    assert len(seen) == results.CALIBRATION_IMAGES
    assert not seen & {image.tobytes() for image in results.images(entry, folder)[1]}


def test_mistakes_are_one_clear_error(folder, monkeypatch, capfd):
    out = folder / "results.json"
    out.write_text("not json")
    assert results.main(["--out", str(out), "--only", "resnet20-fixed8"]) == 1
    assert "results.json: must be JSON" in capfd.readouterr().err
    out.write_text(json.dumps({"accuracy": {}}))
    assert results.main(["--out", str(out), "--only", "resnet20-fixed8"]) == 1
    error = capfd.readouterr().err
    assert "resnet20_cifar10.safetensors: must be a weights file, but there is none" in error
    assert "Traceback" not in error and json.loads(out.read_text()) == {"accuracy": {}}
    monkeypatch.delenv("TERRAZZO_DATA")
    assert results.main(["--out", str(out)]) == 1
    assert "error: TERRAZZO_DATA must name the folder" in capfd.readouterr().err
