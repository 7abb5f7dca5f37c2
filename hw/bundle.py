"""What a hardware engineer takes along: Verilog, memory image, a test without Python, and the documents for it."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..arch import registers
from ..arch.accelerator import Accelerator
from ..arch.files import FileError
from ..arch.isa import INSTRUCTION_WORDS
from ..arch.program import Program
from ..arch.registers import IDENTITY, address
from .axi import prefixes
from .dram import AddressMap, footprint, image, pack, striped

__all__ = ["ports", "write_bundle", "write_verilog"]

_TESTBENCH = Path(__file__).with_name("testbench.v")
_LATENCY = 20
_MAX_CYCLES = 10_000_000
_PORT = re.compile(r"\b(input|output)\b(?:\s+(?:reg|wire))?\s*(?:\[(\d+):0\])?\s*(\w+)")
_PORT_DOCS = (
    (r"clk", "clock; every register takes its rising edge"),
    (r"rst", "synchronous reset, active high; hold for at least one cycle"),
    (r"irq", "interrupt, high until ACKNOWLEDGE; enabled by IRQ_ENABLE"),
    (r"s_axil_.*", "AXI4-Lite slave, synchronous to clk: the registers"),
    (
        r"m_axi_.*",
        "AXI4 master (several are numbered), synchronous to clk: program, weights, inputs, outputs",
    ),
    (r"trace_.*", "for simulation and logic analysers; may be left open"),
)
_README = """# {name} for terrazzo_top

| file | content |
|---|---|
| `terrazzo_top.v` | the accelerator; {primitives} |
| `filelist.f` | the files to synthesize |
{models}| `testbench.v` | self-checking test with a behavioural AXI4 memory |
| `memory.hex` | DRAM of the test: program, weights, {frames} input image(s); words of {bus_bytes} bytes |
| `expected.hex` | the output that the integer graph gives, and which bytes of it count |
| `registers.h`, `registers.md` | the register map |
| `ports.md` | ports, clocks and resets |

## Test
In this directory:

    iverilog -g2005 -o test testbench.v {simulated}-f filelist.f && vvp -n test

    verilator --binary --timing -CFLAGS -std=c++20 -Wno-fatal --top-module testbench testbench.v {simulated}-f filelist.f && obj_dir/Vtestbench

Either ends with `PASS`, or with `FAIL` and an exit status that is not 0.

## Use
Write the buffers of the table to DRAM, set the registers, write LOAD to CONTROL, wait for LOADED in STATUS, run the setup entry
once and the frame entry once per image (START in CONTROL; INTERRUPT in STATUS tells the end). `testbench.v` does just that.

| buffer | address in the test | bytes | registers |
|---|---|---|---|
| program | {program:#010x} | {program_bytes} | PROGRAM |
| weights | {weights:#010x} | {weight_bytes} | WEIGHTS_BASE, WEIGHTS_LIMIT |
| scratch | {scratch:#010x} | {scratch_bytes} | SCRATCH_BASE, SCRATCH_LIMIT |
| input | {input:#010x} | {input_bytes} | INPUT_BASE, INPUT_LIMIT |
| output | {output:#010x} | {output_bytes} | OUTPUT_BASE, OUTPUT_LIMIT |

Addresses are multiples of 4096 and of a block, {block} bytes, and a buffer takes whole blocks.{stripes}

Setup entry {setup_entry}, frame entry {frame_entry}. Accelerator hash {hash:016x}.
"""

_STRIPES = """
There are {ports} ports, and a line is {bus_bytes} bytes of each. In every block of a buffer (not of the program) the bytes of a port come
together: byte b of port p in line l lies at p * {stripe} + l * {bus_bytes} + b."""


def write_bundle(
    directory: str | Path,
    accelerator: Accelerator,
    program: Program,
    codes: np.ndarray,
    expected: np.ndarray,
    verilog: str | None = None,
    models: Mapping[str, str] | None = None,
) -> Path:
    """Write the bundle to `directory`, whole or not at all; a bundle that is there is replaced.

    `codes` (N, ...) are input codes, `expected` (N, positions, channels) the output codes of the reference.
    `verilog` is generated unless it is given; `models` holds the behaviour, in Verilog, of the vendor primitives in it
    by their names. Raises FileError for a directory with other files, and for another
    accelerator's program.
    """
    directory = Path(directory)
    program.require(accelerator)
    if len(codes) < 1 or len(codes) != len(expected):
        raise ValueError(
            f"codes and expected must hold the same number of images, not {len(codes)}, {len(expected)}"
        )
    if verilog is None:
        from .top import verilog as generate

        verilog = generate(accelerator)
    files = _files(accelerator, program, np.asarray(codes), np.asarray(expected), verilog, models or {})
    return _write(directory, files)


def write_verilog(
    directory: str | Path,
    accelerator: Accelerator,
    verilog: str | None = None,
    models: Mapping[str, str] | None = None,
) -> Path:
    """Write the bundle without a test: Verilog and models, file list, registers and ports."""
    if verilog is None:
        from .top import verilog as generate

        verilog = generate(accelerator)
    return _write(Path(directory), _documents(verilog, models or {}))


def _write(directory: Path, files: dict[str, str]) -> Path:
    """All files to a directory beside `directory`, which then takes its name."""
    if directory.exists() and not (directory / "terrazzo_top.v").exists() and any(directory.iterdir()):
        raise FileError(
            f"{directory}: must not exist, or be a bundle that may be replaced. Choose another name."
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        new = temporary / "new"
        new.mkdir()
        for name, text in files.items():
            (new / name).write_text(text)
        if directory.exists():
            directory.rename(temporary / "old")
        new.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def ports(verilog: str) -> list[tuple[str, str, int, str]]:
    """(name, direction, bits, meaning) of every port of terrazzo_top."""
    body = verilog[verilog.index("module terrazzo_top(") :]
    body = body[: body.index("endmodule")]
    return [
        (
            name,
            direction,
            int(high or 0) + 1,
            next(doc for rule, doc in _PORT_DOCS if re.fullmatch(rule, name)),
        )
        for direction, high, name in _PORT.findall(body)
    ]


def _files(
    accelerator: Accelerator,
    program: Program,
    codes: np.ndarray,
    expected: np.ndarray,
    verilog: str,
    models: Mapping[str, str],
) -> dict[str, str]:
    places = AddressMap.of(program, len(codes))
    dram = image(program, codes, places)
    facts = {
        "name": program.name,
        "frames": len(codes),
        "bus_bytes": accelerator.bus_bytes,
        "block": accelerator.block_bytes,
        "stripes": "" if accelerator.ports == 1 else _stripes(accelerator),
        "program": places.program,
        "program_bytes": 4 * INSTRUCTION_WORDS + program.instructions.nbytes,
        "weights": places.weights,
        "weight_bytes": len(program.weights),
        "scratch": places.scratch,
        "scratch_bytes": program.scratch_bytes,
        "input": places.inputs[0],
        "input_bytes": places.input_bytes,
        "output": places.outputs[0],
        "output_bytes": places.output_bytes,
        "setup_entry": program.setup_entry,
        "frame_entry": program.frame_entry,
        "hash": accelerator.hash,
        "primitives": f"vendor primitives: {', '.join(models)}" if models else "no vendor primitives",
        "models": "".join(
            f"| `{_model(name)}` | behaviour of {name}, for simulation without the vendor's library |\n"
            for name in models
        ),
        "simulated": "".join(f"{_model(name)} " for name in models),
    }
    return {
        **_documents(verilog, models),
        "testbench.v": _TESTBENCH.read_text()
        .replace("//PARAMETERS", _parameters(accelerator, program, places))
        .replace("//MASTERS", _masters(accelerator)),
        "memory.hex": _hex(dram, accelerator.bus_bytes),
        "expected.hex": _expected_hex(accelerator, program, expected),
        "README.md": _README.format(**facts),
    }


def _model(primitive: str) -> str:
    return f"{primitive.lower()}.v"


def _documents(verilog: str, models: Mapping[str, str]) -> dict[str, str]:
    return {
        "terrazzo_top.v": verilog,
        **{_model(name): text for name, text in models.items()},
        "filelist.f": "terrazzo_top.v\n",
        "registers.h": registers.c_header(),
        "registers.md": registers.markdown(),
        "ports.md": _ports_markdown(verilog),
    }


def _stripes(accelerator: Accelerator) -> str:
    a = accelerator
    return _STRIPES.format(ports=a.ports, bus_bytes=a.bus_bytes, stripe=a.burst_beats * a.bus_bytes)


def _masters(accelerator: Accelerator) -> str:
    """The test's connections to the device's masters."""
    widths = dict.fromkeys(("awaddr", "araddr"), "32") | dict.fromkeys(("awlen", "arlen"), "8")
    widths |= {"wdata": "BUS_BITS", "rdata": "BUS_BITS", "wstrb": "BUS_BYTES"}
    channels = ("aw", "w", "b", "ar", "r")
    single = [*(f"{channel}{name}" for channel in channels for name in ("valid", "ready")), "wlast", "rlast"]
    constant = {"bid": "1'b0", "bresp": "2'b0", "rid": "1'b0", "rresp": "2'b0"}
    connections = []
    for port, prefix in enumerate(prefixes(accelerator)):
        connections += [f".{prefix}_{name}({value})" for name, value in constant.items()]
        connections += [f".{prefix}_{name}(m_{name}[{port}])" for name in single]
        connections += [
            f".{prefix}_{name}(m_{name}[{port}*{width} +: {width}])" for name, width in widths.items()
        ]
    return ",\n    ".join(connections)


def _parameters(accelerator: Accelerator, program: Program, places: AddressMap) -> str:
    """The test's local parameters, and the register offsets that it uses."""
    frames = len(places.inputs)
    values = {
        "BUS_BYTES": accelerator.bus_bytes,
        "PORTS": accelerator.ports,
        "LATENCY": _LATENCY,
        "MAX_CYCLES": _MAX_CYCLES,
        "MEMORY_WORDS": -(-places.size // accelerator.bus_bytes),
        "FRAMES": frames,
        "SETUP_ENTRY": program.setup_entry,
        "FRAME_ENTRY": program.frame_entry,
        "PROGRAM_ADDRESS": places.program,
        "WEIGHTS_ADDRESS": places.weights,
        "WEIGHTS_BYTES": len(program.weights),
        "SCRATCH_ADDRESS": places.scratch,
        "SCRATCH_BYTES": program.scratch_bytes,
        "INPUT_ADDRESS": places.inputs[0],
        "INPUT_BYTES": places.input_bytes,
        "INPUT_STEP": places.inputs[1] - places.inputs[0] if frames > 1 else 0,
        "OUTPUT_ADDRESS": places.outputs[0],
        "OUTPUT_BYTES": places.output_bytes,
        "OUTPUT_STEP": places.outputs[1] - places.outputs[0] if frames > 1 else 0,
        "OUTPUT_WORDS": footprint(accelerator, places.output_bytes) // accelerator.bus_bytes,
        "IDENTITY_VALUE": IDENTITY,
    }
    used = ["IDENTITY", "CONTROL", "STATUS", "CAUSE", "IRQ_ENABLE", "PROGRAM", "ENTRY", "CYCLES"]
    used += [
        f"{region}_{part}"
        for region in ("WEIGHTS", "INPUT", "OUTPUT", "SCRATCH")
        for part in ("BASE", "LIMIT")
    ]
    lines = [f"localparam {name} = {value};" for name, value in values.items()]
    lines += [f"localparam [7:0] {name} = 8'h{address(name):02X};" for name in used]
    return "\n  ".join(lines)


def _hex(data: np.ndarray, word_bytes: int) -> str:
    """For $readmemh: a word per line, the first byte lowest."""
    words = np.pad(data, (0, -len(data) % word_bytes)).reshape(-1, word_bytes)[:, ::-1]
    return "".join(f"{word.tobytes().hex()}\n" for word in words)


def _expected_hex(accelerator: Accelerator, program: Program, expected: np.ndarray) -> str:
    """A word per line: a bit per byte that carries a code, then the bytes."""
    layout, bus = program.output, accelerator.bus_bytes
    shape = (layout.positions, layout.channels)

    def words(codes: np.ndarray) -> np.ndarray:
        return striped(accelerator, pack(accelerator, layout.pack(accelerator, codes))).reshape(-1, bus)

    counts = words(np.full(shape, -1)) != 0
    lines = []
    for codes in expected:
        rows = words(codes.reshape(shape))
        for mask, word in zip(counts, rows, strict=True):
            bits = sum(int(bit) << i for i, bit in enumerate(mask))
            number = bits << (8 * bus) | int.from_bytes(word.tobytes(), "little")
            lines.append(f"{number:0{-(-9 * bus // 4)}x}\n")
    return "".join(lines)


def _ports_markdown(verilog: str) -> str:
    lines = [
        "# Ports of terrazzo_top",
        "",
        "One clock domain. No asynchronous inputs; no clock is generated inside.",
        "",
    ]
    lines += ["| port | direction | bits | meaning |", "|---|---|---|---|"]
    lines += [f"| `{name}` | {direction} | {bits} | {doc} |" for name, direction, bits, doc in ports(verilog)]
    return "\n".join([*lines, ""])
