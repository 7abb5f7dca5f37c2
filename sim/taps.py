"""Watches what the engines write on chip: Verilog bound into the machine, and the log that sim/harness.cpp makes of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from ..arch.accelerator import Accelerator
from ..arch.isa import Engine
from ..arch.layout import drained_lanes, lane_bytes

__all__ = ["Writes", "instrument", "read"]

_SCRATCHPAD_FILE, _WEIGHT_FILE = "scratchpad.bin", "weight.bin"
_VERILOG = """
module terrazzo_tap_scratchpad(
  input clk, input drain, input [15:0] drain_row, input [{mask}:0] drain_mask, input [{data}:0] drain_data,
  input vector, input [15:0] vector_row, input [{mask}:0] vector_mask, input [{data}:0] vector_data);
  import "DPI-C" function void terrazzo_tap_scratchpad(
    input int engine, input int row, input bit [{mask}:0] mask, input bit [{data}:0] data);
  always @(posedge clk) begin
    if (drain) terrazzo_tap_scratchpad({matrix}, {{16'b0, drain_row}}, drain_mask, drain_data);
    if (vector && !(drain && drain_row >> {row_bits} == vector_row >> {row_bits}))
      terrazzo_tap_scratchpad({vector}, {{16'b0, vector_row}}, vector_mask, vector_data);
  end
endmodule
bind {scratchpad} terrazzo_tap_scratchpad tap(
  .clk(blocks_clk), .drain(drain__valid), .drain_row(drain__row), .drain_mask(drain__mask), .drain_data(drain__data),
  .vector(vector_write__valid), .vector_row(vector_write__row), .vector_mask(vector_write__mask),
  .vector_data(vector_write__data));

module terrazzo_tap_weight(
  input clk, input drain, input keys, input [15:0] row, input [15:0] part, input [15:0] block, input [{values}:0] data);
  import "DPI-C" function void terrazzo_tap_weight(
    input int keys, input int row, input int part, input int block, input bit [{values}:0] data);
  always @(posedge clk)
    if (drain) terrazzo_tap_weight({{31'b0, keys}}, {{16'b0, row}}, {{16'b0, part}}, {{16'b0, block}}, data);
endmodule
bind {weights} terrazzo_tap_weight tap(
  .clk(blocks_clk), .drain(drain__valid), .keys(drain__keys), .row(drain__row), .part(drain__part), .block(drain__block),
  .data(drain__values));
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writes:
    """What one engine wrote to one memory, in time order."""

    engine: Engine
    memory: str
    """SCRATCHPAD or WEIGHT, as in sim/functional.py."""
    cycles: np.ndarray
    """(N,) cycle since power-up."""
    rows: np.ndarray
    """(N,)"""
    mask: np.ndarray
    """(N, row bytes) bool: bytes written."""
    data: np.ndarray
    """(N, row bytes) uint8."""


def instrument(accelerator: Accelerator, verilog: str) -> tuple[str, str]:
    """The Verilog with taps, and the header of their sizes for sim/harness.cpp."""
    row_bytes = accelerator.scratchpad_row_bytes
    values = accelerator.columns * accelerator.drain
    text = _VERILOG.format(
        mask=row_bytes - 1,
        data=8 * row_bytes - 1,
        values=8 * values - 1,
        row_bits=(accelerator.scratchpad_rows - 1).bit_length(),
        matrix=int(Engine.MATRIX),
        vector=int(Engine.VECTOR),
        scratchpad=_module_with(verilog, *_members("drain", "vector_write", names="mask valid row data")),
        weights=_module_with(
            verilog, *_members("drain", names="keys valid row part block values"), "load_row"
        ),
    )
    sizes = {
        "MASK_WORDS": -(-row_bytes // 32),
        "DATA_WORDS": -(-8 * row_bytes // 32),
        "VALUE_WORDS": -(-8 * values // 32),
    }
    header = "".join(f"constexpr size_t {name} = {value};\n" for name, value in sizes.items())
    return verilog + text, header


def _members(*prefixes: str, names: str) -> list[str]:
    return [f"{prefix}__{name}" for prefix in prefixes for name in names.split()]


def _module_with(verilog: str, port: str, *signals: str) -> str:
    """The one module that has the input `port` and declares all of `signals`."""
    declared = [rf"^  input\b.*\b{port};"] + [
        rf"^  (?:wire|reg)\b.*\b{signal}\s*(?:=.*)?;" for signal in signals
    ]
    found = [
        match[1]
        for match in re.finditer(r"^module (\w+)\(.*?^endmodule", verilog, re.MULTILINE | re.DOTALL)
        if all(re.search(rule, match[0], re.MULTILINE) for rule in declared)
    ]
    if len(found) != 1:
        raise RuntimeError(
            f"taps need one module with {port}, {', '.join(signals)}, not {len(found)}: {found}"
        )
    return found[0]


def read(accelerator: Accelerator, directory: Path) -> tuple[Writes, ...]:
    """The log in a job's directory."""
    return (*_scratchpad(accelerator, directory), _weight(accelerator, directory))


def _scratchpad(a: Accelerator, directory: Path) -> list[Writes]:
    size = a.scratchpad_row_bytes
    record = np.dtype(
        [
            ("cycle", "<i8"),
            ("engine", "<i4"),
            ("row", "<i4"),
            ("mask", "u1", 4 * -(-size // 32)),
            ("data", "u1", 4 * -(-size // 4)),
        ]
    )
    log = np.fromfile(directory / _SCRATCHPAD_FILE, dtype=record)
    group = min(a.drain, a.vector)  # of a mask, the first bit of every group counts (hw/scratchpad.py)
    bits = np.unpackbits(log["mask"], axis=1, bitorder="little")[:, :size].astype(bool)
    mask = np.repeat(bits[:, ::group], group, axis=1)
    return [
        Writes(
            engine=engine,
            memory="SCRATCHPAD",
            cycles=log["cycle"][mine],
            rows=log["row"][mine],
            mask=mask[mine],
            data=log["data"][mine, :size],
        )
        for engine in (Engine.MATRIX, Engine.VECTOR)
        for mine in [log["engine"] == engine]
    ]


def _weight(a: Accelerator, directory: Path) -> Writes:
    """Keys and values, put where hw/weights.py puts them: lane after lane, `depth` codes each."""
    count = a.columns * a.drain
    record = np.dtype(
        [
            ("cycle", "<i8"),
            *((name, "<i4") for name in ("keys", "row", "part", "block")),
            ("data", "u1", 4 * -(-count // 4)),
        ]
    )
    log = np.fromfile(directory / _WEIGHT_FILE, dtype=record)
    column, bank = (v.ravel() for v in np.divmod(np.arange(count), a.drain))
    keys, part, block = (log[name][:, None] for name in ("keys", "part", "block"))
    lane = np.where(keys, drained_lanes(a, part, True, column), drained_lanes(a, part, False, bank))
    code = np.where(keys, block * a.drain + bank, block * a.columns + column) % a.depth
    first, bits = (v[np.minimum(lane, a.lanes.total - 1)] for v in lane_bytes(a))
    value = log["data"][:, :count] & (1 << bits) - 1
    mask = np.zeros((len(log), a.weight_row_bytes), dtype=bool)
    data = np.zeros(mask.shape, dtype=np.uint8)
    index, byte = np.arange(len(log))[:, None], first + code * bits // 8
    mask[index, byte] = True
    for high in (False, True):  # the codes of bytes and the lower of two in a byte, the upper ones
        here = (code * bits % 8 != 0) == high
        rows, codes = np.nonzero(here)
        data[rows, byte[here]] |= value[rows, codes].astype(np.uint8) << (4 if high else 0)
    return Writes(
        engine=Engine.MATRIX, memory="WEIGHT", cycles=log["cycle"], rows=log["row"], mask=mask, data=data
    )
