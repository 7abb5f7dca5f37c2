"""The command line as a user meets it: verbs that work, and one clear error for each mistake."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from terrazzo.arch.graph import Graph
from terrazzo.arch.program import Program
from terrazzo.cli import main

from .. import tiny

UNSUPPORTED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.odd = nn.GroupNorm(2, 8)
    def forward(self, x):
        return torch.cumsum(self.odd(self.conv(x)), dim=1)

def build():
    return Net()
"""
SMALL = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
"""


@pytest.fixture
def terrazzo(monkeypatch, capsys):
    """Run a command; returns (exit status, stdout, stderr with line breaks removed)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["terrazzo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return end.value.code, captured.out, " ".join(captured.err.split())

    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A graph, its program, a folder of images and an accelerator file of the tiny machine."""
    folder = tmp_path_factory.mktemp("files")
    tiny.graph().save(folder / "tiny.graph")
    tiny.program().save(folder / "tiny.program")
    (folder / "tiny.json").write_text(json.dumps(tiny.MACHINE.to_dict()))
    (folder / "images").mkdir()
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8)).save(
            folder / "images" / f"{i}.png"
        )
    (folder / "bad.py").write_text(UNSUPPORTED)
    (folder / "small.py").write_text(SMALL)
    (folder / "grey").mkdir()
    for i in range(8):
        Image.fromarray(random.integers(0, 256, (6, 6), dtype=np.uint8)).save(folder / "grey" / f"{i}.png")
    return folder


def test_boards_and_manual(terrazzo):
    status, out, _ = terrazzo("boards", "--json")
    assert status == 0
    assert {"zcu102", "ulx3s-85f"} <= {board["board"] for board in json.loads(out)["boards"]}
    status, out, _ = terrazzo("manual")
    assert status == 0 and "## MATRIX (3)" in out and "| 0x10 | CONTROL |" in out


def test_quantize_compile_and_simulate(terrazzo, files, tmp_path):
    graph, program = tmp_path / "small.graph", tmp_path / "small.program"
    model = ("--model", f"{files / 'small.py'}:build", "--input", "1,6,6")
    machine = ("--accelerator", files / "tiny.json")
    status, out, err = terrazzo(
        "quantize", *model, "--images", files / "grey", *machine, "-o", graph, "--json"
    )
    assert status == 0, err
    assert len(json.loads(out)["layers"]) >= 2
    status, out, err = terrazzo(
        "compile", graph, *machine, "-o", program, "--listing", tmp_path / "l", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["macs"] == 16 * 8 * 9 + 128 * 3
    assert "MATRIX" in (tmp_path / "l").read_text()
    status, _, err = terrazzo("compile", graph, *machine, "-o", tmp_path / "other.program", "--thorough")
    assert status == 0, err
    found = {}
    for level in ("reference", "functional", "cycle"):
        status, out, err = terrazzo(
            "sim", graph, program, "--images", files / "grey", "--level", level, "--json"
        )
        assert status == 0, err
        found[level] = json.loads(out)
    assert found["reference"]["predictions"] == found["functional"]["predictions"]
    assert len(found["cycle"]["predictions"]) == 8 and found["cycle"]["frame"][0]["cycles"] > 0
    read, written, both = found["cycle"]["memory"]
    assert read["bytes"] > 0 and written["bytes"] > 0 and both["bytes"] == read["bytes"] + written["bytes"]
    slow = ["--level", "cycle", "--refresh", 1000, "--json"]
    status, out, err = terrazzo("sim", graph, program, "--images", files / "grey", *slow)
    assert json.loads(out)["frame"][0]["cycles"] > found["cycle"]["frame"][0]["cycles"], err


def test_compare_on_the_users_images(terrazzo, files):
    status, out, err = terrazzo(
        "compare", files / "tiny.graph", files / "tiny.program", "--images", files / "images", "--json"
    )
    result = json.loads(out)
    assert status == 0, err
    assert result["equal"] and result["images"] == 3 and result["rtl_cycles"] == result["cycle_model_cycles"]


def test_compare_fails_on_a_difference(terrazzo, files, tmp_path):
    """A program whose weights were damaged after compiling (with a valid checksum) is caught, with a place."""
    program = Program.load(files / "tiny.program")
    weights = program.weights.copy()
    weights[:64] ^= 0x11
    dataclasses.replace(program, weights=weights).save(tmp_path / "damaged.program")
    status, _, _ = terrazzo(
        "compare",
        files / "tiny.graph",
        tmp_path / "damaged.program",
        "--images",
        files / "images",
        "--count",
        1,
    )
    assert status == 1


def test_rtl_writes_a_bundle(terrazzo, files, tmp_path):
    status, out, err = terrazzo(
        *("rtl", "-o", tmp_path / "bundle", "--no-synthesis", "--json"),
        *("--program", files / "tiny.program", "--graph", files / "tiny.graph", "--images", files / "images"),
    )
    assert status == 0, err
    assert "module terrazzo_top" in Path(json.loads(out)["verilog"]).read_text()
    names = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert {"terrazzo_top.v", "filelist.f"} <= names and any(name.endswith(".hex") for name in names)
    assert "dsp48e2.v" not in names


def test_check_lists_every_offender(terrazzo, files):
    status, out, _ = terrazzo("check", "--model", f"{files / 'bad.py'}:build", "--input", "1,8,8", "--json")
    findings = json.loads(out)["findings"]
    assert status == 1 and {"odd"} <= {f["where"] for f in findings} and len(findings) == 2
    assert all(f["reason"] and f["remedy"] for f in findings)


def test_functions_are_chosen_by_name(terrazzo, files, tmp_path):
    arguments = ("--model", f"{files / 'small.py'}:build", "--input", "1,6,6", "--images", files / "grey")
    status, *_ = terrazzo("quantize", *arguments, "--functions", "heatvit", "-o", tmp_path / "small.graph")
    assert status == 0 and Graph.load(tmp_path / "small.graph").name == "small-mixed-heatvit"


def mistakes(files, tmp_path):
    """(arguments, a part of the error message)."""
    whole = (files / "tiny.graph").read_bytes()
    (tmp_path / "truncated.graph").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "truncated.safetensors").write_bytes(whole[:100])
    other = dataclasses.replace(tiny.MACHINE, bus_bytes=16)
    (tmp_path / "other.json").write_text(json.dumps(other.to_dict()))
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    graph, program, images = files / "tiny.graph", files / "tiny.program", files / "images"
    bad = ("--model", f"{files / 'bad.py'}:build", "--input", "1,8,8")
    small = ("--model", f"{files / 'small.py'}:build", "--input", "1,6,6")
    grey = ("--images", files / "grey")
    yield ("quantize", *bad, *grey, "-o", out), "odd"
    yield ("quantize", *small, *grey, "--weights", tmp_path / "truncated.safetensors", "-o", out), "truncated"
    yield ("quantize", *small, "--images", tmp_path / "empty", "-o", out), "must hold images"
    yield ("quantize", *small, *grey, "--rows", "fixed9", "-o", out), "rows must be mixed, fixed8 or a block"
    wrong = ("--functions", "ibert", "-o", out)
    yield ("quantize", *small, *grey, *wrong), "functions must be one of exact, i-vit, heatvit, not 'ibert'"
    yield ("quantize", "--model", "nowhere.py:build", "--input", "1,6,6", "-o", out), "model file must exist"
    yield ("quantize", "--model", f"{files / 'small.py'}:build", "-o", out), 'input must be "C,H,W"'
    yield ("compile", tmp_path / "truncated.graph", "-o", out), "must be a whole safetensors file"
    yield ("compile", program, "-o", out), "must be a Terrazzo graph, not program"
    yield ("compile", tmp_path / "absent.graph", "-o", out), "must be readable"
    yield ("sim", graph, graph, "--images", images), "must be a Terrazzo program, not graph"
    yield ("sim", graph, program, "--images", images, "--level", "guess"), "level must be one of"
    yield ("sim", graph, program, "--images", tmp_path / "empty"), "must hold images"
    yield ("sim", graph, program, "--images", images, "--board", "zcu1"), "board must be one of"
    yield (
        ("rtl", "--board", "zcu102", "--set", "depth=64", "--set", "lanes.fixed8=128", "-o", out),
        "nearest that fits",
    )
    yield ("rtl", "--board", "nowhere", "-o", out), "board must be one of zcu102"
    yield ("rtl", "--set", "columns", "-o", out), "request must be parameter=number"
    yield ("rtl", "--set", "depth=3", "-o", out), "depth must be a power of two, not 3"
    yield (
        ("rtl", "--accelerator", tmp_path / "other.json", "--program", program, "--graph", graph, "-o", out),
        "bus_bytes 8 here, 16 there",
    )


def test_each_mistake_is_one_clear_error_and_nothing_is_written(terrazzo, files, tmp_path):
    for arguments, message in mistakes(files, tmp_path):
        status, out, err = terrazzo(*arguments)
        assert status == 2, (arguments, err)
        assert message in err and err.count("error: ") == 1, (arguments, err)
        assert out == "" and not (tmp_path / "out").exists(), arguments


def test_no_compiler_is_one_clear_error(terrazzo, files, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    status, _, err = terrazzo(
        "sim", files / "tiny.graph", files / "tiny.program", "--images", files / "images"
    )
    assert status == 2 and "C++ compiler must be installed" in err


def test_finetune_goes_on_where_it_stopped(terrazzo, tmp_path):
    graph, checkpoint = tmp_path / "tuned.graph", tmp_path / "run.pt"
    arguments = ("finetune", "--model", "digits-cnn", "-o", graph, "--checkpoint", checkpoint)
    arguments += ("--epochs", 1, "--batch", 400)
    status, out, _ = terrazzo(*arguments, "--json")
    assert status == 0 and len(json.loads(out)["losses"]) == 1
    first = graph.read_bytes()
    status, out, err = terrazzo(*arguments)
    assert status == 0 and "Training" in out
    assert Graph.load(graph).operators and graph.read_bytes() == first
    status, _, err = terrazzo(*arguments, "--rate", 0.5)
    assert status == 2 and "rate 0.002" in err and "remove it" in err
    status, _, err = terrazzo("finetune", "--model", "digits-cnn", "-o", graph, "--device", "tpu9")
    assert status == 2 and "device must be" in err


def test_finetune_refuses_the_graph_of_another_model(terrazzo, files, tmp_path):
    arguments = ("finetune", "--model", "digits-cnn", "-o", tmp_path / "x", "--start", files / "tiny.graph")
    status, _, err = terrazzo(*arguments)
    assert status == 2 and "give the graph of this model" in err and not (tmp_path / "x").exists()
