"""ONNX files on the command line."""

import json
import sys

import numpy as np
import onnx
import pytest
import torch

from terrazzo import api, cli
from terrazzo.arch.graph import Graph
from terrazzo.quant.trainable import Trainable
from terrazzo.sim import functional, reference
from tests import onnx_models as models


@pytest.fixture
def terrazzo(monkeypatch, capsys):
    """Run the command line: returns (status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["terrazzo", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def test_a_quantized_model_needs_no_images(terrazzo, tmp_path):
    onnx.save(models.statically_quantized(models.cnn(), tmp_path), tmp_path / "net.onnx")
    assert terrazzo("check", tmp_path / "net.onnx", "--input", "3,8,8")[0] == 0
    graph = tmp_path / "net.graph"
    status, out, _ = terrazzo("quantize", tmp_path / "net.onnx", "--input", "3,8,8", "-o", graph, "--json")
    assert status == 0 and Graph.load(graph).name == "net"
    assert any(row["op"] == "conv" for row in json.loads(out)["layers"])
    integer = Graph.load(graph)
    codes = reference.quantize_batch(integer, models.images(2))
    program = api.compile(integer, api.make_accelerator())
    wanted = reference.run(integer, codes)
    assert np.ptp(wanted.astype(int)) > 20 and np.array_equal(
        functional.run(program, codes).reshape(wanted.shape), wanted
    )


def test_mistakes_are_one_line_and_write_nothing(terrazzo, tmp_path):
    net = models.Net()
    onnx.save(net.model(net.op("LeakyRelu", net.conv("image", 8, 3), name="leaky")), tmp_path / "leaky.onnx")
    (tmp_path / "corrupt.onnx").write_bytes(b"x" * 100)
    graph = tmp_path / "net.graph"
    status, out, _ = terrazzo("check", tmp_path / "leaky.onnx", "--json")
    (finding,) = json.loads(out)["findings"]
    assert status == 1 and finding["where"] == "leaky" and finding["remedy"]
    for arguments, expected in (
        ([tmp_path / "corrupt.onnx"], "corrupt.onnx: must be"),
        ([tmp_path / "absent.onnx"], "must be an existing ONNX file"),
        ([tmp_path / "net.pt"], "must be ONNX"),
        ([], "name one model"),
        ([tmp_path / "leaky.onnx", "--model", "digits-cnn"], "name one model"),
        ([tmp_path / "leaky.onnx", "--std", "0"], "no std 0"),
        ([tmp_path / "leaky.onnx"], "needs calibration images"),
    ):
        status, _, err = terrazzo("quantize", *arguments, "-o", graph)
        assert status == 2 and expected in err.replace("\n", " ") and "Traceback" not in err, arguments
        assert not graph.exists()


def test_finetune_takes_a_float_model_and_graphs_that_came_quantized(terrazzo, tmp_path):
    onnx.save(models.cnn(), tmp_path / "net.onnx")
    onnx.save(models.statically_quantized(models.cnn(), tmp_path), tmp_path / "quantized.onnx")
    np.savez(tmp_path / "train.npz", x=models.images(16))
    common = ("--input", "3,8,8", "--images", tmp_path / "train.npz", "--epochs", 1, "--batch", 8)
    status, _, err = terrazzo("finetune", tmp_path / "net.onnx", *common, "-o", tmp_path / "tuned.graph")
    assert status == 0 and Graph.load(tmp_path / "tuned.graph").operators, err
    assert (
        terrazzo("quantize", tmp_path / "quantized.onnx", *common[:2], "-o", tmp_path / "start.graph")[0] == 0
    )
    start = Graph.load(tmp_path / "start.graph")
    model = Trainable(start)
    found = model.result()
    assert found.operators == start.operators and found.tensors == start.tensors
    for name, value in start.constants.items():
        np.testing.assert_array_equal(found.constants[name], value, err_msg=name)
    codes = reference.quantize_batch(start, models.images(8))
    output = model.codes_of(torch.from_numpy(codes.astype(np.float32))).detach().numpy()
    np.testing.assert_array_equal(output, reference.run(start, codes))
    arguments = ("--start", tmp_path / "start.graph", *common, "-o", tmp_path / "again.graph")
    assert terrazzo("finetune", tmp_path / "net.onnx", *arguments)[0] == 0
    status, _, err = terrazzo("finetune", tmp_path / "quantized.onnx", *common, "-o", tmp_path / "no.graph")
    assert status == 2 and "must be a float model" in " ".join(err.split())
    assert not (tmp_path / "no.graph").exists()
