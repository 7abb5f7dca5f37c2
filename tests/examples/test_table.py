"""The table of architectures: what it counts, where it is written, and what is missing without transformers."""

import json

import pytest
from torch import nn

from terrazzo.arch.errors import UserError
from terrazzo.boards import demo_accelerator
from terrazzo.examples import table
from terrazzo.examples.architectures import ARCHITECTURES


class Plain(nn.Module):
    """A network that everything supports; with `norm`, one that import refuses."""

    def __init__(self, norm: bool):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm = nn.GroupNorm(2, 8) if norm else nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean((2, 3)))


class Fixed:
    """An architecture that needs no library."""

    model, size = "Plain", 8

    def __init__(self, norm: bool):
        self.build = lambda: Plain(norm).eval()


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(table, "ARCHITECTURES", {"good": Fixed(False), "bad": Fixed(True)})
    monkeypatch.setattr(table, "fit", lambda board, requests: demo_accelerator())
    monkeypatch.setattr(table, "find_spec", lambda name: name)


def test_rows_say_how_far_each_comes(two, tmp_path, capsys):
    docs = tmp_path / "results.md"
    docs.write_text("before\n<!-- architectures: begin -->\nold\n<!-- architectures: end -->\nafter\n")
    out = tmp_path / "new" / "table"
    assert table.main(["--out", str(out), "--docs", str(docs), "--only", "good", "bad"]) == 0
    good, bad = json.loads(out.with_suffix(".json").read_text())
    assert (good["imported"], good["quantized"], good["compiled"], good["equal"]) == (True, True, True, True)
    assert good["sqnr_db"] > 20 and good["variation_db"] > 15 and good["reasons"] == []
    assert (bad["imported"], bad["quantized"]) == (False, None)
    assert bad["reasons"] == ["group_norm: the operator has no hardware"]
    assert table.main(["--out", str(out), "--only", "bad"]) == 0
    again = json.loads(out.with_suffix(".json").read_text())
    assert again[0] == good and again[1]["name"] == "bad", "other rows stay"
    text = docs.read_text()
    assert text.startswith("before\n<!--") and text.endswith("-->\nafter\n") and "old" not in text
    assert (
        "2 architectures" in text and "1 imported, 1 quantized, 1 compiled, 1 reference = functional" in text
    )
    assert "| bad | `Plain` | 8 | no |" in text
    assert capsys.readouterr().out.count("\n") == 3


def test_a_program_that_disagrees_is_a_failure(two, tmp_path, monkeypatch):
    real = table.functional.run
    monkeypatch.setattr(table.functional, "run", lambda program, codes: real(program, codes) + 1)
    assert table.main(["--out", str(tmp_path / "table"), "--only", "good"]) == 1


def test_a_document_without_a_place(two, tmp_path):
    docs = tmp_path / "results.md"
    docs.write_text("nothing\n")
    with pytest.raises(UserError, match=r"results\.md: must contain the lines <!-- architectures: begin -->"):
        table.main(["--out", str(tmp_path / "table"), "--docs", str(docs), "--only", "good"])
    assert docs.read_text() == "nothing\n"


def test_rows_of_another_file(two, tmp_path):
    (tmp_path / "table.json").write_text('[{"title": 1}]')
    with pytest.raises(
        UserError, match=r"table\.json: must hold the rows of an earlier run, but .*; remove it"
    ):
        table.main(["--out", str(tmp_path / "table"), "--only", "good"])


def test_without_transformers(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(table, "find_spec", lambda name: None)
    assert table.main(["--out", str(tmp_path / "table")]) == 2
    assert "transformers must be installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_there_are_enough_architectures():
    assert len(ARCHITECTURES) >= 20
