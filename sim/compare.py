"""The four simulators side by side, and where the first difference lies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..arch import isa
from ..arch.graph import Graph
from ..arch.isa import Destination, Engine, Instruction, Opcode
from ..arch.layout import Layout, lane_bytes
from ..arch.memory import MemoryModel
from ..arch.program import Program
from ..hw.dram import pack
from ..hw.verilator import require_tools
from . import cycle, functional, reference
from .functional import Machine, Write
from .rtl import RtlResult, RtlSimulator, Wave
from .taps import Writes

__all__ = ["Comparison", "Difference", "compare", "first_difference"]

_BEFORE, _AFTER = 300, 100
"""Cycles of a waveform around a difference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where two simulators disagree on a value."""

    between: tuple[str, str]
    """The one that is believed, the other."""
    image: int
    layer: str
    tensor: str
    position: int
    """Of the instruction's output (functional and RTL) or of the tensor."""
    channel: int
    tile: int
    instruction: int
    text: str
    """The instruction, disassembled."""
    expected: int | None
    """Code; None where nothing should have been written."""
    found: int | None
    """Code; None where nothing was written."""
    cycle: int | None
    """Of the RTL since power-up; the waveform's time is 10 times that. None without RTL."""

    def __str__(self) -> str:
        where = f"image {self.image}, layer {self.layer}, tensor {self.tensor}, position {self.position}, channel "
        when = "" if self.cycle is None else f", cycle {self.cycle} (waveform time {10 * self.cycle})"
        return (
            f"{self.between[1]} differs from {self.between[0]}: {where}{self.channel}, tile {self.tile}{when}: "
            f"{self.found} instead of {self.expected}; instruction {self.instruction}: {self.text}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the four simulators gave for the same images."""

    program: Program
    images: int
    functional_mismatches: int
    """Images whose functional outputs differ from the reference."""
    rtl_mismatches: int
    """Images whose RTL outputs differ from the reference."""
    predicted_frames: tuple[int, ...]
    """Cycles of each frame, from the cycle model; none for a memory with random stalls."""
    predicted_layers: dict[int, tuple[int, int]]
    """Tag to first start and last end in cycles of the first frame."""
    frame_cycles: tuple[int, ...]
    """RTL cycles of each frame."""
    rtl_layers: dict[int, tuple[int, int]]
    """The same as `predicted_layers`, in the RTL's first frame."""
    simulated_cycles: int
    difference: Difference | None

    @property
    def rtl_cycles(self) -> int:
        """Cycles of the first frame."""
        return self.frame_cycles[0]

    @property
    def predicted_cycles(self) -> int | None:
        """Predicted cycles of the first frame."""
        return self.predicted_frames[0] if self.predicted_frames else None

    @property
    def equal(self) -> bool:
        """All outputs are those of the reference, and all cycles those of the cycle model."""
        return not self.messages()

    def messages(self) -> list[str]:
        """One line per kind of difference; empty if all agree."""
        lines = [
            f"outputs: {count} of {self.images} images of the {name} differ from the reference"
            for name, count in (
                ("functional simulator", self.functional_mismatches),
                ("RTL", self.rtl_mismatches),
            )
            if count
        ]
        if self.difference is not None:
            lines.append(str(self.difference))
        if not self.predicted_frames:
            return lines
        both = zip(self.frame_cycles, self.predicted_frames, strict=True)
        for frame, (cycles, predicted) in enumerate(both):
            if cycles != predicted:
                lines.append(f"cycles: frame {frame} takes {cycles} in RTL, {predicted} predicted")
                break
        for layer in self.program.layers:
            predicted, found = self.predicted_layers.get(layer.tag), self.rtl_layers.get(layer.tag)
            if predicted != found:
                lines.append(
                    f"cycles: layer {layer.name} runs {found} in RTL, {predicted} predicted (first start, last end)"
                )
                break
        return lines

    def rows(self) -> list[dict]:
        """A row per layer."""
        return [
            {
                "layer": layer.name,
                "op": layer.op,
                "start": self.rtl_layers[layer.tag][0],
                "end": self.rtl_layers[layer.tag][1],
                "predicted": "–".join(map(str, self.predicted_layers.get(layer.tag, ("", "")))),
                "equal": self.predicted_layers.get(layer.tag) == self.rtl_layers[layer.tag],
            }
            for layer in self.program.layers
            if layer.tag in self.rtl_layers
        ]

    def to_json(self) -> dict:
        """Plain values."""
        return {
            "images": self.images,
            "equal": self.equal,
            "functional_mismatches": self.functional_mismatches,
            "rtl_mismatches": self.rtl_mismatches,
            "rtl_cycles": self.rtl_cycles,
            "cycle_model_cycles": self.predicted_cycles,
            "layers": self.rows(),
            "difference": None if self.difference is None else dataclasses.asdict(self.difference),
            "messages": self.messages(),
        }


def compare(
    graph: Graph,
    program: Program,
    codes: np.ndarray,
    memory: MemoryModel | None = None,
    *,
    computed: Graph | None = None,
    verilog: str | None = None,
    wave: str | Path | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Run `codes` (N, *input shape) through all simulators.

    The cycle model predicts before the RTL runs. Where outputs differ, the RTL runs again with taps to find the first
    wrong write. `wave` receives an FST: around the difference, or else the first frame. `verilog` replaces the
    generated text. `computed` is `graph` without what the program leaves out (`compiler.needed`), to find a wrong layer by.
    """
    require_tools()
    memory = memory or MemoryModel()
    codes = np.asarray(codes)
    shape = (len(codes), program.output.positions, program.output.channels)
    progress("reference")
    expected = reference.run(graph, codes).reshape(shape)
    progress("functional")
    frames = list(functional.frames(program, codes))
    executed = np.stack([frame.outputs for frame in frames])
    progress("cycle model")
    timings = [] if memory.stall else cycle.frames(program, memory, [frame.written for frame in frames])
    if verilog is None:
        from ..hw.top import verilog as generate

        progress("generating Verilog")
        verilog = generate(program.accelerator)
    progress("compiling the RTL simulation")
    simulator = RtlSimulator(program.accelerator, verilog)
    limit = {"max_cycles": 4 * max(t.cycles for t in timings) + 100_000} if timings else {}
    rtl = simulator.run(
        program, codes, memory, progress=lambda n: progress(f"RTL: {n} of {len(codes)} images"), **limit
    )

    wrong = [np.flatnonzero((outputs != expected).any(axis=(1, 2))) for outputs in (executed, rtl.outputs)]
    difference = None
    if len(wrong[0]):
        progress("looking for the first wrong instruction")
        difference = _against_reference(computed or graph, program, codes, int(wrong[0][0]))
    if (rtl.outputs != executed).any():
        progress("looking for the first wrong write")
        first = int(np.flatnonzero((rtl.outputs != executed).any(axis=(1, 2)))[0])
        watching = RtlSimulator(program.accelerator, verilog, watch=True)
        difference = first_difference(
            program, codes[: first + 1], watching.run(program, codes[: first + 1], memory)
        )
    if wave is not None:
        progress("recording the waveform")
        window = (int(rtl.starts[1]), int(rtl.starts[1] + rtl.cycles[0]))
        if difference is not None and difference.cycle is not None:
            window = (max(0, difference.cycle - _BEFORE), difference.cycle + _AFTER)
        traced = RtlSimulator(program.accelerator, verilog, trace=True)
        frames = codes[: 1 if difference is None else difference.image + 1]
        traced.run(program, frames, memory, wave=Wave(path=Path(wave), first=window[0], last=window[1]))
    return Comparison(
        program=program,
        images=len(codes),
        functional_mismatches=len(wrong[0]),
        rtl_mismatches=len(wrong[1]),
        predicted_frames=tuple(timing.cycles for timing in timings),
        predicted_layers={
            tag: (s.start, s.done) for timing in timings[:1] for tag, s in timing.layers.items()
        },
        frame_cycles=tuple(int(c) for c in rtl.cycles),
        rtl_layers=rtl.spans[0],
        simulated_cycles=rtl.total_cycles,
        difference=difference,
    )


def _logged(program: Program, codes: np.ndarray) -> tuple[list[list[Write]], list[Instruction]]:
    """The functional simulator's log of setup and each frame, and the decoded instructions."""
    machine = Machine(program.accelerator, log=True)
    machine.load(program)
    machine.run(program.setup_entry)
    logs = [machine.log]
    for image in codes:
        machine.log = []
        machine.run(
            program.frame_entry, pack(program.accelerator, program.input.pack(program.accelerator, image))
        )
        logs.append(machine.log)
    return logs, [isa.decode(words) for words in program.instructions]


def _against_reference(graph: Graph, program: Program, codes: np.ndarray, image: int) -> Difference | None:
    """The first layer, in program order, whose output tensor is nowhere as the reference has it."""
    tensors = reference.run(graph, codes[image : image + 1], keep=True)
    logs, instructions = _logged(program, codes[: image + 1])
    operators = {operator.name: operator for operator in graph.operators}
    for layer in program.layers:
        operator = operators.get(layer.name)
        if operator is None:
            continue
        tensor = graph.tensor(operator.output)
        expected = tensors[tensor.name].reshape(tensor.positions, tensor.channels)
        best = None
        for base, stride, found, index in _written(program, logs[-1], instructions, layer.tag, tensor):
            places = np.argwhere(found != expected)
            if best is None or len(places) < len(best[0]):
                best = places, base, stride, found, index
        if best is not None and len(best[0]):
            position, channel = map(int, best[0][0])
            return Difference(
                between=("reference", "functional"),
                image=image,
                layer=layer.name,
                tensor=tensor.name,
                position=position,
                channel=channel,
                tile=position // program.accelerator.columns,
                instruction=best[4],
                text=isa.disassemble(instructions[best[4]]),
                expected=int(expected[position, channel]),
                found=int(best[3][position, channel]),
                cycle=None,
            )
    return None


def _written(program, log, instructions, tag, tensor):
    """Candidates for a layer's output: (base row, stride, codes, last instruction), for each place that it wrote to."""
    a, wide = program.accelerator, tensor.dtype == "s16"
    mine = [w for w in log if instructions[w.instruction].tag == tag and w.memory == "SCRATCHPAD"]
    content = np.zeros((a.scratchpad_regions * a.scratchpad_rows, a.scratchpad_row_bytes), np.uint8)
    for write in mine:
        content[write.rows] = np.where(write.mask, write.data, content[write.rows])
    outputs = {}
    for write in mine:
        i = instructions[write.instruction]
        is_wide = bool(i.wide if i.opcode == Opcode.MATRIX else i.dst_wide)
        if (
            i.opcode in (Opcode.MATRIX, Opcode.VECTOR)
            and is_wide == wide
            and i.destination == Destination.SCRATCHPAD
        ):
            outputs[i.dst, i.dst_stride] = write.instruction
    for (base, stride), instruction in outputs.items():
        layout = Layout(positions=tensor.positions, channels=tensor.channels, wide=wide, stride=stride)
        rows = base + np.arange(layout.rows(a))
        if stride * a.depth >= tensor.channels * layout.code_bytes and rows[-1] < len(content):
            yield base, stride, layout.unpack(a, content[rows]), instruction


@dataclasses.dataclass(frozen=True)
class _Bytes:
    """Written bytes in time order, sorted by cell (row and byte); `rank` counts the writes of one cell."""

    cell: np.ndarray
    rank: np.ndarray
    value: np.ndarray
    origin: np.ndarray
    """Index into the list of instructions executed, or cycle."""

    @classmethod
    def of(cls, rows: np.ndarray, mask: np.ndarray, data: np.ndarray, origin: np.ndarray) -> _Bytes:
        n, byte = np.nonzero(mask)
        cell = rows[n].astype(np.int64) * mask.shape[1] + byte
        order = np.argsort(cell, kind="stable")
        cell = cell[order]
        first = np.r_[True, cell[1:] != cell[:-1]] if len(cell) else np.zeros(0, bool)
        rank = np.arange(len(cell)) - np.maximum.accumulate(np.where(first, np.arange(len(cell)), 0))
        return cls(cell, rank, data[n, byte][order], origin[n][order])

    @property
    def key(self) -> np.ndarray:
        """Sorted, unique: which write of which cell."""
        return self.cell << 24 | self.rank


def first_difference(program: Program, codes: np.ndarray, rtl: RtlResult) -> Difference | None:
    """The first instruction, in program order, whose writes differ between functional simulator and a watched RTL run."""
    logs, instructions = _logged(program, codes)
    executed = [(frame, write) for frame, log in enumerate(logs) for write in log]
    best: tuple[int, int, int, int, int | None] | None = None
    for watched in rtl.writes:
        mine = [
            (index, write)
            for index, (_, write) in enumerate(executed)
            if write.memory == watched.memory and instructions[write.instruction].engine == watched.engine
        ]
        found = _earliest(watched, mine)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
            width = watched.mask.shape[1]
    if best is None:
        return None
    index, cell, expected, value, cycle_ = best
    frame, write = executed[index]
    i = instructions[write.instruction]
    position, channel = _place(program, i, cell // width, cell % width)
    return Difference(
        between=("functional", "RTL"),
        image=max(frame - 1, 0),
        layer=next((layer.name for layer in program.layers if layer.tag == i.tag), f"tag {i.tag}"),
        tensor=f"{write.memory} row {cell // width}, byte {cell % width}",
        position=position,
        channel=channel,
        tile=position // program.accelerator.columns,
        instruction=write.instruction,
        text=isa.disassemble(i),
        expected=expected,
        found=value,
        cycle=cycle_,
    )


def _earliest(watched: Writes, executed: list[tuple[int, Write]]):
    """(index of executed, cell, expected byte, found byte or None, cycle or None) of the earliest instruction."""
    width = watched.mask.shape[1]
    rows = np.concatenate([w.rows for _, w in executed] or [np.zeros(0, int)])
    mask = np.concatenate([w.mask for _, w in executed] or [np.zeros((0, width), bool)])
    data = np.concatenate([w.data for _, w in executed] or [np.zeros((0, width), np.uint8)])
    origin = np.repeat([index for index, _ in executed], [len(w.rows) for _, w in executed]).astype(np.int64)
    want = _Bytes.of(rows, mask, data, origin)
    have = _Bytes.of(watched.rows, watched.mask, watched.data, watched.cycles)
    _, in_want, in_have = np.intersect1d(want.key, have.key, assume_unique=True, return_indices=True)
    candidates = []
    wrong = np.flatnonzero(want.value[in_want] != have.value[in_have])
    if len(wrong):
        k = wrong[np.lexsort((have.origin[in_have[wrong]], want.origin[in_want[wrong]]))[0]]
        w, h = in_want[k], in_have[k]
        candidates.append((want.origin[w], want.cell[w], want.value[w], have.value[h], have.origin[h]))
    missing = np.setdiff1d(np.arange(len(want.cell)), in_want, assume_unique=True)
    if len(missing):
        w = missing[np.argmin(want.origin[missing])]
        candidates.append((want.origin[w], want.cell[w], want.value[w], None, None))
    if not candidates:
        return None
    return tuple(None if v is None else int(v) for v in min(candidates, key=lambda c: int(c[0])))


def _place(program: Program, i: Instruction, row: int, byte: int) -> tuple[int, int]:
    """(position, channel) in the instruction's output of a byte that it wrote."""
    a = program.accelerator
    if i.engine == Engine.MATRIX and i.destination != Destination.SCRATCHPAD:
        block, within = divmod(row - i.dst, i.dst_stride or 1)
        first, bits = lane_bytes(a)
        lane = int(np.searchsorted(first, byte, side="right")) - 1
        code = within * a.depth + (byte - int(first[lane])) * 8 // int(bits[lane])
        if i.destination == Destination.KEYS:
            word, slot = divmod(lane, a.depth)
            tile = word * (a.depth // a.columns) + slot // a.columns + block * i.dst_block - i.dst_part
            return tile * a.columns + slot % a.columns, code
        channel = (block * i.dst_block - i.dst_part) * a.drain + lane
        return code // a.depth * a.tokens_per_word + code % a.depth, channel
    base, stride, wide = i.dst, i.dst_stride or 1, i.wide if i.engine == Engine.MATRIX else i.dst_wide
    tiles = -(-i.positions // a.columns)
    if i.engine == Engine.MATRIX and i.second and not base <= row < base + tiles * stride:
        base, stride, wide = i.second_dst, i.second_stride or 1, 0
    tile, within = divmod(row - base, stride)
    channel = (within * a.depth + byte % a.depth) // (2 if wide else 1)
    return tile * a.columns + byte // a.depth, channel
