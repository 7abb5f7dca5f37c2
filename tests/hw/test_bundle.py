"""The bundle for hardware engineers: its test runs without Python, passes, and can fail."""

import dataclasses
import os
import shutil
import subprocess

import numpy as np
import pytest

from terrazzo import compiler
from terrazzo.arch.files import FileError
from terrazzo.arch.registers import REGISTERS
from terrazzo.boards import ZCU102
from terrazzo.boards.synthesis import FLOWS
from terrazzo.boards.synthesis import verilog as board_verilog
from terrazzo.hw import verilator
from terrazzo.hw.bundle import ports, write_bundle
from terrazzo.sim import reference

from .. import tiny

IVERILOG = shutil.which("iverilog")


def write(directory, expected_change=0):
    codes = tiny.codes(2)
    expected = reference.run(tiny.graph(), codes).reshape(2, tiny.program().output.positions, -1)
    expected = expected.copy()
    expected[1, -1, -1] ^= expected_change
    return write_bundle(directory, tiny.MACHINE, tiny.program(), codes, expected, tiny.verilog())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write(tmp_path_factory.mktemp("bundle") / "good")


def run(command, directory):
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)


def test_files(bundle):
    names = {path.name for path in bundle.iterdir()}
    assert names == {
        "terrazzo_top.v", "filelist.f", "testbench.v", "memory.hex", "expected.hex", "registers.h", "registers.md",
        "ports.md", "README.md",
    }  # fmt: skip
    header = (bundle / "registers.h").read_text()
    assert all(f"#define TERRAZZO_{r.name} 0x{r.offset:02X}u" in header for r in REGISTERS)
    table = (bundle / "ports.md").read_text()
    for name in ("clk", "rst", "irq", "s_axil_awaddr", "m_axi_rdata"):
        assert f"| `{name}` |" in table
    assert ("m_axi_rdata", "input", 64) in [port[:3] for port in ports(tiny.verilog())]
    assert ("m_axi_araddr", "output", 32) in [port[:3] for port in ports(tiny.verilog())]


def test_c_header_compiles(bundle):
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    assert run(["gcc", "-fsyntax-only", "-Wall", "-Werror", "-x", "c", "registers.h"], bundle).returncode == 0


def test_verilator_passes_and_fails(bundle, tmp_path, monkeypatch):
    """One build; then the same executable reads an image with a wrong byte."""
    variables = {k: v for k, v in verilator.make_variables().items() if v}
    monkeypatch.setenv("MAKEFLAGS", " ".join(f"{k}={v}" for k, v in variables.items()))
    arguments = ["--binary", "--timing", "-CFLAGS", "-std=c++20", "-Wno-fatal", "--top-module", "testbench"]
    arguments += ["--Mdir", str(tmp_path / "obj"), "testbench.v", "-f", "filelist.f"]
    built = verilator.verilate(arguments, bundle)
    assert built.returncode == 0, built.stderr[-2000:]
    good = run([tmp_path / "obj" / "Vtestbench"], bundle)
    assert good.returncode == 0 and "PASS" in good.stdout and "FAIL" not in good.stdout
    wrong = write(tmp_path / "wrong", expected_change=1)
    bad = run([tmp_path / "obj" / "Vtestbench"], wrong)
    assert bad.returncode != 0 and "FAIL" in bad.stdout and "PASS" not in bad.stdout


@pytest.mark.skipif(IVERILOG is None, reason="iverilog is not installed")
def test_ports(tmp_path):
    """The test of a machine with four ports passes, and fails where two of them answer for each other."""
    machine = dataclasses.replace(tiny.MACHINE, ports=4)
    program, codes = compiler.compile(tiny.graph(), machine), tiny.codes(1)
    expected = reference.run(tiny.graph(), codes).reshape(1, program.output.positions, -1)
    directory = write_bundle(tmp_path / "ports", machine, program, codes, expected)
    assert "| `m_axi_3_rdata` |" in (directory / "ports.md").read_text()
    bench = directory / "testbench.v"
    right, swapped = ".m_axi_1_rdata(m_rdata[1*", ".m_axi_1_rdata(m_rdata[2*"
    assert right in bench.read_text()
    for result in ("PASS", "FAIL"):
        built = run([IVERILOG, "-g2005", "-o", "test", "testbench.v", "-f", "filelist.f"], directory)
        assert built.returncode == 0, built.stderr
        assert result in run(["vvp", "-n", "test"], directory).stdout
        bench.write_text(bench.read_text().replace(right, swapped))


@pytest.mark.skipif(IVERILOG is None, reason="iverilog is not installed")
def test_icarus_passes_and_fails(bundle, tmp_path):
    for name, directory in (("PASS", bundle), ("FAIL", write(tmp_path / "wrong", expected_change=1))):
        test = tmp_path / f"test-{name}"
        built = run([IVERILOG, "-g2005", "-o", test, "testbench.v", "-f", "filelist.f"], directory)
        assert built.returncode == 0, built.stderr
        result = run(["vvp", "-n", test], directory)
        assert name in result.stdout and (result.returncode == 0) == (name == "PASS"), result.stdout


@pytest.mark.full
@pytest.mark.skipif(IVERILOG is None, reason="iverilog is not installed")
def test_vendor_primitives(tmp_path):
    """A board's Verilog passes with the primitives' models, as the README says, and does not elaborate without."""
    codes = tiny.codes(1)
    expected = reference.run(tiny.graph(), codes).reshape(1, tiny.program().output.positions, -1)
    text, models = board_verilog(tiny.MACHINE, ZCU102), FLOWS[ZCU102.flow].models
    directory = write_bundle(tmp_path / "board", tiny.MACHINE, tiny.program(), codes, expected, text, models)
    readme = (directory / "README.md").read_text()
    assert "vendor primitives: DSP48E2 |" in readme and "| `dsp48e2.v` |" in readme
    (command,) = [line.strip() for line in readme.splitlines() if line.strip().startswith("iverilog")]
    alone = run(["sh", "-c", command.replace("dsp48e2.v ", "")], directory)
    assert alone.returncode and "DSP48E2" in alone.stderr
    result = run(["sh", "-c", command], directory)
    assert result.returncode == 0 and "PASS" in result.stdout, result.stdout + result.stderr


def test_lint_is_clean():
    assert verilator.lint(tiny.verilog()) == []


def test_lint_reports():
    text = "module terrazzo_top(input clk, output reg [3:0] a);\n  always @(posedge clk) b <= a;\nendmodule\n"
    assert any("b" in line and line.startswith("%Error") for line in verilator.lint(text))
    latch = "module terrazzo_top(input a, input b, output reg c);\n  always @* if (a) c = b;\nendmodule\n"
    assert any(line.startswith("%Warning-LATCH") for line in verilator.lint(latch))


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("keep")
    with pytest.raises(FileError, match=r"foreign: must not exist, or be a bundle that may be replaced"):
        write(foreign)
    assert os.listdir(tmp_path) == ["foreign"] and os.listdir(foreign) == ["mine.txt"]
    again = write(tmp_path / "again")
    (again / "README.md").write_text("old")
    assert "# tiny for" in (write(again) / "README.md").read_text()
    monkeypatch.setattr("terrazzo.hw.bundle._ports_markdown", lambda text: None)
    with pytest.raises(TypeError):
        write(tmp_path / "half")
    assert sorted(os.listdir(tmp_path)) == ["again", "foreign"]


def test_counts_must_agree(tmp_path):
    with pytest.raises(ValueError, match=r"must hold the same number of images, not 1, 2"):
        write_bundle(
            tmp_path / "x", tiny.MACHINE, tiny.program(), tiny.codes(1), np.zeros((2, 1, 1)), tiny.verilog()
        )
