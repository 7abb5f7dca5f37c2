"""RTL simulation: the generated Verilog, compiled by Verilator, run by sim/harness.cpp against a timed DRAM."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import platformdirs

from ..arch.accelerator import Accelerator
from ..arch.errors import UserError
from ..arch.isa import Engine
from ..arch.memory import MemoryModel
from ..arch.program import Program
from ..arch.registers import REGISTERS, Cause, Control, Status, address
from ..hw import verilator
from ..hw.dram import AddressMap, footprint, image, read_output
from ..hw.verilog import module_bodies, module_instances
from . import taps

__all__ = ["EVENT", "RtlError", "RtlResult", "RtlSimulator", "Wave", "build", "cache_directory", "engine_of"]

EVENT = np.dtype([("cycle", "<i8"), ("code", "<i4"), ("tag", "<i4")])
"""A trace event: code = Engine * 2 + (1 if done), or RUN_START, RUN_END."""
RUN_START, RUN_END = 8, 9
MAX_CYCLES = 50_000_000
COUNTERS = tuple(r.name for r in REGISTERS if r.name.endswith(("CYCLES", "_BUSY", "_STALLED")))
_HARNESS = Path(__file__).with_name("harness.cpp")
_FST = Path(__file__).with_name("fst")
_FLAGS = [
    "-O3",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "--noassert",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
    "--output-split-cfuncs",
    "1000",
]
"""GCC takes more than 15 minutes for a function of 11,000 lines, which machines with `lanes.fixed4_dynamic` have, and
seconds for its parts."""
_SHARING = ["-fno-gate", "-fno-dfg"]
"""With modules that are compiled separately: these would make each instance a different one again."""
_LARGE = 3_000_000
"""Characters of Verilog, each instance counted; the demo's machine has half of it."""
_VARIABLES = {"OPT_FAST": "-O3", "OPT_GLOBAL": "-O1", "LDLIBS": "-pthread"}


class RtlError(UserError):
    """A simulated run that failed: an error in the registers, a hang, a stray write, a broken AXI rule."""

    def __init__(self, message: str, cause: Cause = Cause.NONE, info: int = 0):
        super().__init__(message)
        self.cause = cause
        self.info = info


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wave:
    """A waveform to record."""

    path: Path
    """FST file."""
    first: int = 0
    """First cycle since power-up."""
    last: int = 1 << 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class RtlResult:
    """What a simulation of the Verilog gave."""

    outputs: np.ndarray
    """(N, positions, channels) int64 codes."""
    cycles: np.ndarray
    """(N,) from each frame's start to its end."""
    setup_cycles: int
    starts: np.ndarray
    """(N + 1,) cycle since power-up in which setup and each frame began."""
    events: np.ndarray
    """EVENT records, in time order, cycles since power-up."""
    writes: tuple[taps.Writes, ...]
    """Of a simulator that watches."""
    spans: tuple[dict[int, tuple[int, int]], ...]
    """Per frame: layer tag to (first start, last done) in cycles since the frame's start."""
    counters: tuple[dict[str, int], ...]
    """Per frame: the CYCLES, BUSY and STALLED registers."""
    total_cycles: int
    """Simulated cycles in all, register accesses included."""


class RtlSimulator:
    """The Verilog of one accelerator, compiled once; models are cached by hash."""

    def __init__(
        self,
        accelerator: Accelerator,
        verilog: str | None = None,
        *,
        trace: bool = False,
        watch: bool = False,
    ):
        """`trace` builds a model that can record waveforms, `watch` one that logs the engines' writes on chip.
        Raises ToolError without a compiler."""
        verilator.require_tools()
        if verilog is None:
            from ..hw.top import verilog as generate

            verilog = generate(accelerator)
        self.accelerator = accelerator
        self.trace = trace
        self.watch = watch
        separate = _separate_modules(verilog)
        verilog, header = taps.instrument(accelerator, verilog) if watch else (verilog, "")
        self.executable = build(
            verilog, ports=accelerator.ports, trace=trace, tap_sizes=header, separate=separate
        )

    def run(
        self,
        program: Program,
        codes: np.ndarray,
        memory: MemoryModel | None = None,
        *,
        wave: Wave | None = None,
        max_cycles: int = MAX_CYCLES,
        progress: Callable[[int], None] | None = None,
    ) -> RtlResult:
        """Load `program`, run its setup and one frame per image of `codes` (N, ...) in the graph's input shape.

        `progress` gets the number of frames done. A run longer
        than `max_cycles` fails. Raises RtlError, and FileError where the program is for another accelerator.
        """
        program.require(self.accelerator)
        if wave is not None and not self.trace:
            raise ValueError("a waveform needs RtlSimulator(..., trace=True)")
        memory = memory or MemoryModel()
        codes = np.asarray(codes)
        places = AddressMap.of(program, len(codes))
        with tempfile.TemporaryDirectory(prefix="terrazzo-rtl-") as name:
            job = Path(name)
            image(program, codes, places).tofile(job / "dram.bin")
            script = _script(program, places, memory, max_cycles, wave)
            (job / "script").write_text("\n".join(script) + "\n")
            lines = self._execute(job, progress)
            if wave is not None:
                shutil.copyfile(job / "wave.fst", wave.path)
            _check(lines)
            writes = taps.read(self.accelerator, job) if self.watch else ()
            dram = np.fromfile(job / "dram.out", dtype=np.uint8)
            events = np.fromfile(job / "events.bin", dtype=EVENT)
        outputs = [read_output(program, dram, start, places) for start in places.outputs]
        shape = (0, program.output.positions, program.output.channels)
        return _result(np.array(outputs).reshape(len(codes), *shape[1:]), events, writes, lines)

    def _execute(self, job: Path, progress: Callable[[int], None] | None) -> list[list[str]]:
        """Run the harness; its reports, split into words."""
        process = subprocess.Popen(
            [self.executable, job], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=job
        )
        lines = []
        with process:
            try:
                for line in process.stdout:
                    words = line.split()
                    lines.append(words)
                    if progress is not None and words[0] == "note":
                        progress(int(words[1]))
                errors = process.stderr.read()
            except BaseException:
                process.kill()
                raise
        if process.returncode not in (0, 3):
            raise RtlError(
                f"RTL simulation must end normally, not with status {process.returncode}: {errors.strip()}"
            )
        return lines


def _script(
    program: Program, places: AddressMap, memory: MemoryModel, max_cycles: int, wave: Wave | None
) -> list[str]:
    """The job of sim/harness.cpp for setup and all frames."""

    def write(name: str, value: int) -> str:
        return f"write {address(name)} {int(value)}"

    def run(entry: int) -> list[str]:
        return [
            write("ENTRY", entry),
            write("CONTROL", Control.START),
            f"irq {max_cycles + 10000}",
            write("CONTROL", Control.ACKNOWLEDGE),
            f"expect {address('STATUS')} {int(Status.ERROR)} 0",
        ]

    stalls = round(memory.stall * 1000)
    refresh = f"{memory.refresh_cycles} {memory.refresh_period}"
    scratch, output = (
        footprint(program.accelerator, size) for size in (program.scratch_bytes, places.output_bytes)
    )
    scratch = f"allow {places.scratch} {scratch}"
    lines = [f"memory {memory.latency} {memory.interval} {refresh} {stalls} {memory.seed}", scratch]
    if wave is not None:
        lines.append(f"wave {wave.first} {wave.last}")
    lines += [
        write("IRQ_ENABLE", 1),
        write("WATCHDOG", max_cycles),
        write("PROGRAM", places.program),
        write("WEIGHTS_BASE", places.weights),
        write("WEIGHTS_LIMIT", len(program.weights)),
        write("SCRATCH_BASE", places.scratch),
        write("SCRATCH_LIMIT", program.scratch_bytes),
        write("INPUT_LIMIT", places.input_bytes),
        write("OUTPUT_LIMIT", places.output_bytes),
        write("CONTROL", Control.LOAD),
        f"until {address('STATUS')} {int(Status.LOADED | Status.ERROR)} {max_cycles}",
        f"expect {address('STATUS')} {int(Status.ERROR)} 0",
        *run(program.setup_entry),
    ]
    for i, (source, target) in enumerate(zip(places.inputs, places.outputs, strict=True)):
        lines += ["deny", scratch, f"allow {target} {output}"]
        lines += [write("INPUT_BASE", source), write("OUTPUT_BASE", target), *run(program.frame_entry)]
        lines += [f"read {address(name)}" for name in COUNTERS]
        lines.append(f"note {i + 1}")
    return [*lines, "end", *(f"read {address(name)}" for name in ("STATUS", "CAUSE", "CAUSE_INFO"))]


def _registers(lines: list[list[str]]) -> list[tuple[int, int]]:
    return [(int(words[1]), int(words[2])) for words in lines if words[0] == "read"]


def _check(lines: list[list[str]]) -> None:
    """Raise RtlError for what a harness reported as wrong."""
    final = dict(_registers(lines))
    cause = Cause(final.get(address("CAUSE"), 0))
    info = final.get(address("CAUSE_INFO"), 0)
    where, frame = "RTL simulation, setup or frame 0", 0
    for words in lines:
        match words:
            case ["note", *_]:
                frame += 1
                where = f"RTL simulation, frame {frame}"
            case ["hang", _, cycle]:
                raise RtlError(
                    f"{where}: a register access must end within 10000 cycles, but hangs at cycle {cycle}."
                )
            case ["stray", place, cycle]:
                raise RtlError(
                    f"{where}: writes must stay inside the OUTPUT and SCRATCH buffers, but address {int(place):#x} was "
                    f"written in cycle {cycle}."
                )
            case ["protocol", *what, place, cycle]:
                raise RtlError(
                    f"{where}: AXI rule broken on {' '.join(what)} at {int(place):#x} in cycle {cycle}."
                )
    if cause or final.get(address("STATUS"), 0) & Status.ERROR:
        raise RtlError(f"{where}: the machine stopped with cause {cause.name}, info {info:#x}.", cause, info)
    for words in lines:
        if words[0] == "timeout":
            raise RtlError(
                f"{where}: the run must end, but was still busy in cycle {words[2]}.", Cause.WATCHDOG
            )


def _result(
    outputs: np.ndarray, events: np.ndarray, writes: tuple[taps.Writes, ...], lines: list[list[str]]
) -> RtlResult:
    starts = events["cycle"][events["code"] == RUN_START]
    ends = events["cycle"][events["code"] == RUN_END]
    if not len(starts) == len(ends) == len(outputs) + 1:
        raise RtlError(
            f"traces must show {len(outputs) + 1} runs, not {len(starts)} starts and {len(ends)} ends."
        )
    spans = []
    for start, end in zip(starts[1:], ends[1:], strict=True):
        inside = events[(events["cycle"] >= start) & (events["cycle"] <= end) & (events["code"] < RUN_START)]
        span: dict[int, tuple[int, int]] = {}
        for cycle, _, tag in inside.tolist():
            first, last = span.get(tag, (cycle - start, cycle - start))
            span[tag] = (int(min(first, cycle - start)), int(max(last, cycle - start)))
        spans.append(span)
    names = {address(name): name for name in COUNTERS}
    reads = [(names[a], value) for a, value in _registers(lines) if a in names]
    counters = tuple(dict(reads[i : i + len(COUNTERS)]) for i in range(0, len(reads), len(COUNTERS)))
    cycles = ends - starts
    return RtlResult(
        outputs=outputs,
        cycles=cycles[1:],
        setup_cycles=int(cycles[0]),
        starts=starts,
        events=events,
        writes=writes,
        spans=tuple(spans),
        counters=counters,
        total_cycles=next(int(words[1]) for words in lines if words[0] == "cycles"),
    )


def engine_of(code: int) -> Engine | None:
    """The engine of an event's code; None for the run's start and end."""
    return Engine(code // 2) if code < RUN_START else None


def cache_directory() -> Path:
    """Where compiled models are kept."""
    return Path(platformdirs.user_cache_dir("terrazzo")) / "rtl"


def build(
    verilog: str, *, ports: int = 1, trace: bool = False, tap_sizes: str = "", separate: Sequence[str] = ()
) -> Path:
    """The executable simulation of `verilog` with AXI `ports`, compiled unless the cache has it; modules named in `separate` are not
    compiled into those around them. Raises ToolError."""
    tools = [verilator.version(), verilator.compiler_version(), _FLAGS, _VARIABLES, trace]
    design = [verilog, _HARNESS.read_text(), ports, tap_sizes, *separate, *(_SHARING if separate else [])]
    executable = cache_directory() / _digest(tools + design)
    if not executable.exists():
        runtime = cache_directory() / f"runtime-{_digest(tools)}"
        with tempfile.TemporaryDirectory(prefix="terrazzo-build-") as name:
            _install(_compile(Path(name), verilog, ports, trace, tap_sizes, separate, runtime), executable)
    return executable


def _separate_modules(verilog: str) -> list[str]:
    """Modules of a large design that Verilator compiles once instead of at each instance, which takes a fraction of
    the time. None of a small design, which simulates faster in one piece."""
    bodies, counts = module_bodies(verilog), module_instances(verilog)
    sizes = {name: len(bodies[name]) * count for name, count in counts.items()}
    if sum(sizes.values()) < _LARGE:
        return []
    return [name for name, count in counts.items() if count >= 4 and sizes[name] > _LARGE // 100]


def _digest(values: list) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def _compile(
    directory: Path,
    verilog: str,
    ports: int,
    trace: bool,
    tap_sizes: str,
    separate: Sequence[str],
    runtime: Path,
) -> Path:
    (directory / "top.v").write_text(verilog)
    (directory / "taps.h").write_text(tap_sizes)
    rules = "".join(f'no_inline -module "{name}"\n' for name in separate)
    (directory / "separate.vlt").write_text(f"`verilator_config\n{rules}")
    arguments = ["--cc", "--exe", "--top-module", verilator.TOP, "--prefix", "Vtop", "--Mdir", "model"]
    arguments += [*_FLAGS, *(_SHARING if separate else []), *(["--trace-fst"] if trace else [])]
    cflags = f"-I{directory} -I{_FST} -std=c++17 -DAXI_PORTS={ports}" + (" -DTAPS" if tap_sizes else "")
    arguments += ["-CFLAGS", cflags, "separate.vlt", "top.v", str(_HARNESS)]
    result = verilator.verilate(arguments, directory)
    if result.returncode:
        errors = [line for line in result.stderr.splitlines() if line.startswith("%Error")]
        raise verilator.ToolError("Verilog must compile, but verilator says:\n" + "\n".join(errors[:20]))
    model = directory / "model"
    kept = {path.name for path in runtime.glob("*.o")}
    for name in kept:  # Verilator's own library is compiled once; copies are newer than the makefile
        shutil.copyfile(runtime / name, model / name)
    verilator.make(model, "Vtop.mk", "Vtop", _VARIABLES)
    for path in model.glob("verilated*.o"):
        if path.name not in kept:
            _install(path, runtime / path.name)
    return model / "Vtop"


def _install(source: Path, target: Path) -> None:
    """Copy, then rename: the cached model is whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(source, temporary)
        os.chmod(temporary, 0o755)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
