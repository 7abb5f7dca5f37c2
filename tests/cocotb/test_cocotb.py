"""Builds the top for cocotb and runs all of faults.py in it; of what the ports matter to, with four as well."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import cocotb_tools.config
import numpy as np
import pytest
from cocotb_tools.runner import get_runner

from terrazzo import compiler
from terrazzo.arch.accelerator import Accelerator
from terrazzo.hw import top, verilator
from terrazzo.hw.bundle import ports
from terrazzo.sim import reference

from .. import tiny

FAULTS = Path(__file__).with_name("faults.py")
PORTS = (
    "random_stalls",
    "read_error",
    "read_error_while_loading",
    "write_error",
    "reset_in_mid_run",
    "out_of_bounds",
)
TESTS = re.findall(r"^@cocotb\.test\(\)\nasync def (\w+)", FAULTS.read_text(), re.MULTILINE)


def build(directory: Path, verilog: str) -> None:
    """The runner's own build makes every signal public, which is slow to compile and to run; here the ports are."""
    (directory / "terrazzo_top.v").write_text(verilog)
    rules = [f'public_flat_rw -module "terrazzo_top" -var "{name}"' for name, *_ in ports(verilog)]
    (directory / "ports.vlt").write_text("\n".join(["`verilator_config", *rules, ""]))
    libraries = cocotb_tools.config.libs_dir
    main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
    arguments = ["--cc", "--exe", "--vpi", "--prefix", "Vtop", "--top-module", "terrazzo_top", "--Mdir", "."]
    arguments += ["-o", "terrazzo_top", "--timescale", "1ns/1ps", "-Wno-fatal", "-O3", "--x-assign", "fast"]
    arguments += ["-LDFLAGS", f"-Wl,-rpath,{libraries} -L{libraries} -lcocotbvpi_verilator"]
    result = verilator.verilate([*arguments, "ports.vlt", "terrazzo_top.v", str(main)], directory)
    assert result.returncode == 0, result.stderr
    verilator.make(directory, "Vtop.mk", "terrazzo_top", {"OPT_FAST": "-O1"})


def simulate(directory: Path, machine: Accelerator, tests: Sequence[str]) -> dict[str, ElementTree.Element]:
    """Test name to its case in the results file of one simulation of tests in faults.py."""
    build(directory, top.verilog(machine))
    program = compiler.compile(tiny.graph(), machine)
    program.save(directory / "program")
    codes = tiny.codes(2)
    np.save(directory / "codes.npy", codes)
    expected = reference.run(tiny.graph(), codes)
    np.save(directory / "expected.npy", expected.reshape(2, program.output.positions, -1))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FAULTS.parent)
        found = get_runner("verilator").test(
            test_module="faults",
            hdl_toplevel="terrazzo_top",
            hdl_toplevel_lang="verilog",
            build_dir=directory,
            test_dir=directory,
            testcase=tests,
            extra_env={"TERRAZZO_JOB": str(directory), "COCOTB_LOG_LEVEL": "WARNING"},
        )
    return {case.attrib["name"].split(".")[-1]: case for case in ElementTree.parse(found).iter("testcase")}


def check(case: ElementTree.Element) -> None:
    failures = case.findall("failure") + case.findall("error")
    assert not failures, "\n".join(f"{f.attrib} {f.text}" for f in failures)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, ElementTree.Element]:
    return simulate(tmp_path_factory.mktemp("cocotb"), tiny.MACHINE, TESTS)


@pytest.fixture(scope="module")
def results_of_ports(tmp_path_factory) -> dict[str, ElementTree.Element]:
    machine = dataclasses.replace(tiny.MACHINE, ports=4)
    return simulate(tmp_path_factory.mktemp("ports"), machine, PORTS)


@pytest.mark.parametrize("name", TESTS)
def test_fault(results, name):
    check(results[name])


@pytest.mark.parametrize("name", PORTS)
def test_fault_with_ports(results_of_ports, name):
    check(results_of_ports[name])


def test_all_ran(results):
    assert set(results) == set(TESTS) and len(TESTS) >= 12
