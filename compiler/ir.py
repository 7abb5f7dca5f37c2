"""The compiler's intermediate form: work items on buffers whose rows are not chosen yet."""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

from ..arch.accelerator import NORM_BYTES, PARAM_BYTES, TABLE_PAGE_ENTRIES, TABLE_ROW_BYTES, Accelerator
from ..arch.errors import UserError
from ..arch.isa import INDEX_BITS, LoadTarget, Opcode
from ..arch.layout import Layout

__all__ = [
    "At",
    "Buffer",
    "Bytes",
    "CompileError",
    "Content",
    "Entry",
    "Item",
    "Memory",
    "Page",
    "Place",
    "Span",
    "capacity",
    "row_bytes",
]

PAGE_ROWS = TABLE_PAGE_ENTRIES // TABLE_ROW_BYTES
INDEX_ROW_ENTRIES = TABLE_ROW_BYTES * 8 // INDEX_BITS


class CompileError(UserError):
    """A graph that this accelerator cannot run; the message lists every reason with its remedy."""

    def __init__(self, graph: str, problems: list[str]):
        self.problems = list(dict.fromkeys(problems))
        super().__init__(f"graph {graph!r} does not compile:\n  " + "\n  ".join(self.problems))


class Memory(enum.Enum):
    """On-chip memories; the value is the target of a LOAD that fills it, where there is one."""

    SCRATCHPAD = LoadTarget.SCRATCHPAD
    WEIGHT = LoadTarget.WEIGHT
    PARAM = LoadTarget.PARAM
    NORM = LoadTarget.NORM
    TABLE = LoadTarget.TABLE
    EXP = LoadTarget.EXP
    RECIP = LoadTarget.RECIP
    RSQRT = LoadTarget.RSQRT
    INDEX = LoadTarget.INDEX
    ROW_SCALE = None
    ROW_MAXIMA = "maxima"
    ROW_MOMENTS = "moments"
    OUTSIDE = "outside"
    """The SCRATCH region in DRAM, in rows of the scratchpad."""


def capacity(accelerator: Accelerator, memory: Memory) -> int:
    """Rows of a memory."""
    a = accelerator
    return {
        Memory.SCRATCHPAD: a.scratchpad_regions * a.scratchpad_rows,
        Memory.WEIGHT: a.weight_rows,
        Memory.PARAM: a.param_rows,
        Memory.NORM: a.norm_rows,
        Memory.TABLE: a.table_pages * PAGE_ROWS,
        Memory.EXP: 32,
        Memory.RECIP: 64,
        Memory.RSQRT: 256,
        Memory.INDEX: a.index_rows // INDEX_ROW_ENTRIES,
        Memory.ROW_SCALE: a.row_scales,
        Memory.ROW_MAXIMA: a.row_maxima,
        Memory.ROW_MOMENTS: a.row_moments,
        Memory.OUTSIDE: (1 << 32) // a.pitch(a.scratchpad_row_bytes),
    }[memory]


def row_bytes(accelerator: Accelerator, memory: Memory) -> int:
    """Bytes of one row of a loadable memory."""
    return {
        Memory.SCRATCHPAD: accelerator.scratchpad_row_bytes,
        Memory.OUTSIDE: accelerator.scratchpad_row_bytes,
        Memory.WEIGHT: accelerator.weight_row_bytes,
        Memory.PARAM: PARAM_BYTES * accelerator.drain,
        Memory.NORM: NORM_BYTES * accelerator.vector,
    }.get(memory, TABLE_ROW_BYTES)


@dataclasses.dataclass(eq=False, kw_only=True)
class Buffer:
    """A range of rows of one memory."""

    name: str
    memory: Memory
    rows: int
    data: np.ndarray | None = None
    """Content that a LOAD brings from the WEIGHTS region: (at most `rows`, row bytes) uint8."""
    tag: int = 0
    """Layer that the LOAD belongs to."""
    whole: bool = False
    """Must lie in one region of the scratchpad."""
    spare: bool = False
    """Ends in a tile that belongs to no position."""
    row: int | None = None
    """First row, chosen by `allocate`."""


@dataclasses.dataclass(frozen=True)
class At:
    """A row number that is known once the buffer is placed."""

    buffer: Buffer
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Page:
    """The number of the table page that the buffer is placed in."""

    buffer: Buffer


@dataclasses.dataclass(frozen=True)
class Entry:
    """The number of the buffer's first entry of the index memory."""

    buffer: Buffer


@dataclasses.dataclass(frozen=True)
class Bytes:
    """The DRAM offset of a row of a buffer, rows being `pitch` bytes apart."""

    buffer: Buffer
    offset: int
    pitch: int


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """The DRAM offset of byte `offset` of data in the WEIGHTS region."""

    data: np.ndarray
    offset: int


@dataclasses.dataclass(frozen=True)
class Span:
    """Rows first..first+rows of a buffer."""

    buffer: Buffer
    first: int
    rows: int


@dataclasses.dataclass(eq=False, kw_only=True)
class Item:
    """One instruction to be."""

    opcode: Opcode
    tag: int
    values: dict[str, int | At | Page | Entry | Bytes | Content]
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()
    place: float = 0.0
    """Where among the positions of its layer it begins, 0..1."""

    def reading(self, found: dict[Buffer, Buffer]) -> Item:
        """The item on other buffers of the same content."""
        values = {
            key: dataclasses.replace(value, buffer=found.get(value.buffer, value.buffer))
            if isinstance(value, At | Page | Entry)
            else value
            for key, value in self.values.items()
        }
        reads = tuple(
            dataclasses.replace(span, buffer=found.get(span.buffer, span.buffer)) for span in self.reads
        )
        return dataclasses.replace(self, values=values, reads=reads)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tensor lies in the scratchpad."""

    buffer: Buffer
    offset: int = 0
    stride: int
    positions: int
    channels: int
    """Channels of the tensor."""
    wide: bool
    slots: tuple[int, ...] | None = None
    """Channel of the rows that holds each channel of the tensor; None where they are the same."""
    joined: bool = False
    """An image with one position per image row."""
    block: tuple[int, int] = (1, 1)
    """Pixels of an image that are one position, see `Layout`."""
    width: int = 1
    """Such positions side by side."""
    window: int = 0
    """Positions of a window where each window begins a tile; 0 where positions follow each other."""

    @property
    def physical(self) -> int:
        """Channels of the rows, up to the last one in use."""
        return self.channels if self.slots is None else self.slots[-1] + 1

    def reach(self, accelerator: Accelerator) -> int:
        """Positions of the rows, up to the last one in use."""
        return int(self.spots(accelerator)[-1]) + 1 if self.window else self.positions

    def spots(self, accelerator: Accelerator) -> np.ndarray:
        """Position of the rows that holds each position of the tensor."""
        p = np.arange(self.positions)
        if not self.window:
            return p
        return (
            p // self.window * (-(-self.window // accelerator.columns) * accelerator.columns)
            + p % self.window
        )

    def rows_before(self, accelerator: Accelerator, position: int) -> int:
        """Rows of the tiles in front of a position that begins a tile."""
        if self.window:
            return position // self.window * -(-self.window // accelerator.columns) * self.stride
        return position // accelerator.columns * self.stride

    def resized(self, positions: int, window: int | None = None) -> Place:
        """A tensor of so many positions in the same arrangement, or in windows of `window`."""
        window = self.window if window is None else window
        return dataclasses.replace(self, positions=positions, window=window if window < positions else 0)

    def rows(self, accelerator: Accelerator) -> int:
        """Rows of all tiles."""
        return -(-self.reach(accelerator) // accelerator.columns) * self.stride

    def part(self, accelerator: Accelerator, number: int, size: int) -> Place:
        """The window `number` of `size` positions."""
        tiles = -(-size // accelerator.columns)
        offset = self.offset + number * tiles * self.stride
        return dataclasses.replace(self, offset=offset, positions=size, window=0)

    def at(self, rows: int = 0) -> At:
        """The row `rows` after the tensor's first."""
        return At(self.buffer, self.offset + rows)

    def span(self, accelerator: Accelerator, first: int, rows: int) -> Span:
        """Rows first..first+rows of every tile (and what lies between them)."""
        tiles = -(-self.reach(accelerator) // accelerator.columns)
        return Span(self.buffer, self.offset + first, (tiles - 1) * self.stride + rows)

    @property
    def layout(self) -> Layout:
        """The layout of a buffer in DRAM with the same rows."""
        return Layout(
            positions=self.positions, channels=self.channels, wide=self.wide, stride=self.stride,
            block=self.block, width=self.width,
        )  # fmt: skip
