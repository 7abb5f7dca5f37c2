"""Builds the top for cocotb once and runs all of faults.py in it."""

import re
from pathlib import Path
from xml.etree import ElementTree

import cocotb_tools.config
import numpy as np
import pytest
from cocotb_tools.runner import get_runner

from terrazzo.hw import verilator
from terrazzo.hw.bundle import ports
from terrazzo.sim import reference

from .. import tiny

FAULTS = Path(__file__).with_name("faults.py")
TESTS = re.findall(r"^@cocotb\.test\(\)\nasync def (\w+)", FAULTS.read_text(), re.MULTILINE)


def build(directory: Path) -> None:
    """The runner's own build makes every signal public, which is slow to compile and to run; here the ports are."""
    (directory / "terrazzo_top.v").write_text(tiny.verilog())
    rules = [f'public_flat_rw -module "terrazzo_top" -var "{name}"' for name, *_ in ports(tiny.verilog())]
    (directory / "ports.vlt").write_text("\n".join(["`verilator_config", *rules, ""]))
    libraries = cocotb_tools.config.libs_dir
    main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
    arguments = ["--cc", "--exe", "--vpi", "--prefix", "Vtop", "--top-module", "terrazzo_top", "--Mdir", "."]
    arguments += ["-o", "terrazzo_top", "--timescale", "1ns/1ps", "-Wno-fatal", "-O3", "--x-assign", "fast"]
    arguments += ["-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator"]
    result = verilator.verilate([*arguments, "ports.vlt", "terrazzo_top.v", str(main)], directory)
    assert result.returncode == 0, result.stderr
    verilator.make(directory, "Vtop.mk", "terrazzo_top", {"OPT_FAST": "-O1"})


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, ElementTree.Element]:
    """Test name to its case in the results file of one simulation."""
    directory = tmp_path_factory.mktemp("cocotb")
    build(directory)
    tiny.program().save(directory / "program")
    codes = tiny.codes(2)
    np.save(directory / "codes.npy", codes)
    expected = reference.run(tiny.graph(), codes)
    np.save(directory / "expected.npy", expected.reshape(2, tiny.program().output.positions, -1))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAULTS.parent)
        found = get_runner("verilator").test(
            test_module="faults",
            hdl_toplevel="terrazzo_top",
            hdl_toplevel_lang="verilog",
            build_dir=directory,
            test_dir=directory,
            extra_env={"TERRAZZO_JOB": str(directory), "COCOTB_LOG_LEVEL": "WARNING"},
        )
    return {case.attrib["name"].split(".")[-1]: case for case in ElementTree.parse(found).iter("testcase")}


@pytest.mark.parametrize("name", TESTS)
def test_fault(results, name):
    failures = results[name].findall("failure") + results[name].findall("error")
    assert not failures, "\n".join(f"{f.attrib} {f.text}" for f in failures)


def test_all_ran(results):
    assert set(results) == set(TESTS) and len(TESTS) >= 12
