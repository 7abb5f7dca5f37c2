"""A program as text."""

from __future__ import annotations

from ..arch import isa
from ..arch.program import Program
from .traffic import traffic

__all__ = ["listing"]


def listing(program: Program) -> str:
    """One line per instruction, under its section and layer."""
    a = program.accelerator
    lines = [
        f"program {program.name} for accelerator {a.hash:016x}",
        f"{len(program.instructions)} of {a.instructions} instructions, {len(program.weights)} bytes of weights",
    ]
    for title, layout in (("input", program.input), ("output", program.output)):
        codes = "s16" if layout.wide else "s8"
        lines.append(
            f"{title}: {layout.positions} positions of {layout.channels} channels, {codes}, "
            f"{layout.rows(a)} rows of {a.scratchpad_row_bytes} bytes"
        )
    moved = traffic(program)
    lines.append(
        f"off-chip bytes: {moved.resident} once, {moved.frame} per frame (weights {moved.weights}, input {moved.input}, "
        f"output {moved.output}, stored {moved.stored}, loaded {moved.loaded}); all content, input and output: {moved.bound}"
    )
    sections = {program.setup_entry: "setup", program.frame_entry: "frame"}
    layer = None
    for index, words in enumerate(program.instructions):
        instruction = isa.decode(words)
        if index in sections:
            lines += ["", f"{sections[index]}:"]
            layer = None
        if instruction.opcode != isa.Opcode.END and instruction.tag != layer:
            layer = instruction.tag
            found = program.layer(layer) if layer < len(program.layers) else None
            lines.append(
                f"  layer {layer}" + (f": {found.op} {found.name}, {found.macs} MACs" if found else "")
            )
        lines.append(f"    {index:4d}  {isa.disassemble(instruction)}")
    return "\n".join(lines) + "\n"
