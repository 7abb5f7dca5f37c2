"""The command that sizes an accelerator."""

import json
import re
import sys

import pytest
from typer.testing import CliRunner

from terrazzo import api, cli, fit, networks, performance
from terrazzo.arch.accelerator import Accelerator
from terrazzo.arch.errors import UserError
from terrazzo.arch.schemes import Scheme
from terrazzo.boards.search import Budget
from terrazzo.quant import data
from terrazzo.synthetic import deit

FIXED8 = {Scheme.FIXED8: 1}
FEW = {"columns": 4, "depth": 8, "drain": 2}


@pytest.fixture(scope="module")
def graph():
    return deit(32, 1, 2, image=64)


@pytest.mark.parametrize(
    "text, message",
    [
        ("fixed9=1", "schemes of fixed8, fixed4, pot4, sp2_4, ternary, binary"),
        ("fixed8=0", "parts from 1 on"),
        ("fixed8", "scheme=parts"),
        ("fixed4=3", "the nearest is fixed8=1,fixed4=3"),
    ],
)
def test_bad_mixtures(text, message):
    with pytest.raises(UserError, match=message):
        api.parse_mixture(text)


@pytest.mark.parametrize("clock", [400, 0, -5])
def test_impossible_clock(graph, clock):
    with pytest.raises(UserError, match=f"at most 150 MHz on zcu102, not {clock}; the nearest is 150"):
        fit.fit("zcu102", graph, clock_mhz=clock)


def test_bits_by_class():
    assert fit.bits("5") == 5 and fit.bits("other=4,e=4") == {"other": 4, "e": 4}
    with pytest.raises(UserError, match="a number or class=bits with commas, not 'e'"):
        fit.bits("e")


def test_command(graph, tmp_path):
    path = graph.save(tmp_path / "small.graph")
    arguments = ["fit", str(path), "--lut", "20", "--evaluations", "4", "--mix", "fixed8=1,pot4=1", "--json"]
    arguments += [part for name, value in FEW.items() for part in ("--set", f"{name}={value}")]
    arguments += ["-o", str(tmp_path / "best.json"), "--plot", str(tmp_path / "front.svg")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    best = Accelerator.from_dict(json.loads((tmp_path / "best.json").read_text()))
    assert printed["front"][0]["accelerator"] == best.to_dict() and best.lanes.pot4 <= best.lanes.fixed8
    assert printed["front"][0]["frames_per_second"] == pytest.approx(
        150e6 / printed["front"][0]["cycles"], abs=0.1
    )
    assert "</svg>" in (tmp_path / "front.svg").read_text()


def test_accuracy_is_measured():
    """Mixtures below the demanded accuracy are left out; where none is left, the error has the figures."""
    model = api.source("digits-cnn")
    images, labels = data.digits("test")
    arguments = {
        "calibration": data.digits("train")[0][:64],
        "test": (images[:100], labels[:100]),
        "budget": Budget(lut=0.2),
        "evaluations": 4,
        "requests": [f"{name}={value}" for name, value in FEW.items()],
    }
    found = fit.fit("zcu102", model, [FIXED8], min_accuracy=90, **arguments)
    assert 90 <= found.accuracy["design"] <= 100 and found.accuracy["fixed8=1"] >= 90
    arguments["test"] = (images[:100], (labels[:100] + 1) % 10)
    with pytest.raises(UserError, match=r"top-1 must be at least 90 %, but fixed8=1 has \d\.\d+: add"):
        fit.fit("zcu102", model, [FIXED8], min_accuracy=90, **arguments)


def test_accuracy_of_a_named_network_is_that_of_the_results():
    """Rows at or above what is demanded compete; `measured` reads the document, so its figures are asked for here."""
    text = performance.RESULTS.read_text()
    figures = dict(
        re.findall(
            r"^\| `(deit-tiny-fixed\S*|deit-tiny-mixed)` \|(?:[^|]*\|){6} ([\d.]+) \|", text, re.MULTILINE
        )
    )
    least = float(figures["deit-tiny-mixed"])
    found = {one.name: one for one in networks.measured("deit-tiny", least)}
    assert found["deit-tiny-mixed"].accuracy == least
    assert found["deit-tiny-mixed"].graph.tensor("0.norm1").shape == (197, 192)
    assert all(float(figures[name]) >= least for name in found)
    (only,) = networks.measured("deit-tiny", 0, [{Scheme.FIXED8: 4, Scheme.FIXED4: 8}])
    assert only.name == "deit-tiny-mixed"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--model", "deit-small", "--min-accuracy", "95"],
            r"^error: min_accuracy must be at most ([\d.]+) % for deit-small, which row \S+ of docs/results.md has, not 95; "
            r"ask for \1, or measure",
        ),
        (
            ["--model", "deit-small", "--min-accuracy", "50", "--mix", "fixed8=1,fixed4=1"],
            r"^error: mix fixed8=1,fixed4=1 must have a row in docs/results.md for deit-small .*fixed8=8,fixed4=16",
        ),
        (["--model", "deit-small", "--clock", "600"], r"^error: clock must be .*nearest is 150\n$"),
        (
            ["--model", "deit-small", "--mix", "fixed4=2"],
            r"^error: mix must have fixed8 .*nearest is fixed8=1,fixed4=2\n$",
        ),
        (
            ["--model", "deit-tiny", "--activation-bits", "other=4"],
            r"^error: activation_bits of a named network must be equal .*nearest is other=4,q=8,k=8,v=8,e=8\n$",
        ),
        (
            ["--model", "deit-tiny", "--set", "columns=3", "--set", "depth=64"],
            r"^error: zcu102 must hold an accelerator with columns=3, depth=64, but .* the nearest that fits has columns=\d+, "
            r"depth=\d+\n$",
        ),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, arguments, message):
    """With the nearest that works, a status that tells of it, and no traceback."""
    monkeypatch.setattr(sys, "argv", ["terrazzo", "fit", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr()
    assert caught.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
