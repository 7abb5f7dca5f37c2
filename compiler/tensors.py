"""State of a lowering: places of tensors, data for the memories, items and problems so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from ..arch.accelerator import TABLE_ROW_BYTES, Accelerator
from ..arch.graph import Graph, Tensor
from ..arch.schemes import Scheme
from .ir import PAGE_ROWS, Buffer, Item, Memory, Place, capacity

__all__ = ["Tensors"]


class Tensors:
    """Collects what a lowering makes. `limits` bounds the rows that one instruction takes of a memory, so that data
    comes and goes in pieces."""

    def __init__(
        self,
        graph: Graph,
        accelerator: Accelerator,
        limits: dict[Memory, int] | None = None,
        heads_ahead: int = 3,
        made: dict | None = None,
        blocks: bool = False,
        largest: float = 0.0,
        alone: frozenset[Memory] = frozenset(),
        summed: bool = False,
    ):
        self.graph, self.accelerator = graph, accelerator
        self.heads_ahead = heads_ahead
        """Heads of an attention whose softmax may be under way at once; with 1, for want of room, nothing is written
        where it will be concatenated."""
        self.blocks = blocks
        """Whether the input may lie in blocks of pixels."""
        self.largest = largest
        """Part of the scratchpad that a tensor of `rounded` may take."""
        self.made = {} if made is None else made
        """Results that other lowerings of the graph for the accelerator can use."""
        self.limited = frozenset(limits or {})
        self.limits = {memory: capacity(accelerator, memory) for memory in Memory} | (limits or {})
        self.alone = alone
        """Memories of which some instruction needs more than half, so that all may take as much; they should not."""
        self.summed = summed
        """Whether LayerNorm's statistics may be taken by the drain."""
        self.items: list[Item] = []
        self.places: dict[str, Place] = {}
        self.copies: dict[tuple, Place] = {}
        """Tensors in other places, by what is different."""
        self.padded: set[str] = set()
        """Tensors that need a spare tile."""
        self.rounded: set[str] = set()
        """Tensors whose tiles are whole groups of `private` rows, so that depthwise windows take as many at once."""
        self.shares: dict[str, tuple[str, int]] = {}
        """Tensors that lie where they are concatenated: by which tensor, and first row in it."""
        self.parts: dict[str, tuple[int, int, int]] = {}
        """Tensors of which the next output is only a part: positions of the whole, first position of the part,
        windows of the whole."""
        self.wholes: dict[str, Place] = {}
        """Tensors that are written in parts."""
        self.rows_by_kind: dict[str, dict[Scheme, int]] = {}
        """Which parts of a layer are computed on lanes of which kind, up to a factor; layers that are not here are on Fixed-8
        lanes."""
        self.ranges: list[tuple[int, int]] = []
        """First item and end of each operator."""
        self.torn: set[int] = set()
        """Operators that gather from a tensor that no region of the scratchpad holds."""
        self.problems: list[str] = []
        self.short: set[Memory] = set()
        """Memories whose limit is the reason of a problem."""
        self._shared: dict[tuple, Buffer] = {}

    def once(self, key: tuple, make: Callable):
        """What `make` returns, made once for a key that holds all that it depends on."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def problem(self, layer: str, text: str) -> None:
        """Note a reason why the graph does not compile."""
        self.problems.append(f"layer {layer}: {text}.")

    def rows_of(self, channels: int, wide: bool) -> int:
        """Rows per tile of a tensor. Blocks of lanes may write past the last channel, so they are rounded up."""
        a = self.accelerator
        unit = a.depth if channels <= a.lanes.fixed8 else max(a.depth, a.lanes.fixed8)
        return -(-channels // unit) * unit * (2 if wide else 1) // a.depth

    def place(
        self,
        name: str,
        positions: int,
        channels: int,
        wide: bool,
        slots: tuple[int, ...] | None = None,
        window: int = 0,
        joined: bool = False,
        spare: bool = False,
        room: int = 0,
        unit: int = 1,
    ) -> Place:
        """A new tensor in the scratchpad; `channels` are those of the tensor, `room` those that are written, and the rows of
        a tile a multiple of `unit`."""
        a = self.accelerator
        rows = self.rows_of(max(room, channels if slots is None else slots[-1] + 1), wide)
        stride = -(-rows // unit) * unit
        buffer = Buffer(name=name, memory=Memory.SCRATCHPAD, rows=0, spare=spare)
        place = Place(
            buffer=buffer, stride=stride, positions=positions, channels=channels, wide=wide, slots=slots,
            joined=joined, window=window if window % a.columns and window < positions else 0,
        )  # fmt: skip
        buffer.rows = (-(-place.reach(a) // a.columns) + spare) * stride
        return place

    def output(
        self, tensor: Tensor, slots: tuple[int, ...] | None = None, window: int = 0, room: int = 0
    ) -> Place:
        """A place for a tensor of the graph, which is remembered."""
        shape, spare = (tensor.channels, tensor.dtype == "s16", slots, window), tensor.name in self.padded
        if tensor.name in self.parts:
            positions, first, window = self.parts[tensor.name]
            if tensor.name not in self.wholes:
                self.wholes[tensor.name] = self.place(tensor.name, positions, *shape[:3], window, room=room)
            whole = self.wholes[tensor.name]
            place = dataclasses.replace(
                whole.resized(tensor.positions), offset=whole.rows_before(self.accelerator, first)
            )
        elif tensor.name in self.shares and slots is None and not window:
            joined, row = self.shares[tensor.name]
            whole = self.places.get(joined) or self.output(self.graph.tensor(joined))
            place = dataclasses.replace(whole, offset=whole.offset + row, channels=tensor.channels)
        else:
            unit = self.accelerator.private if tensor.name in self.rounded else 1
            place = self.place(tensor.name, tensor.positions, *shape, spare=spare, room=room, unit=unit)
        self.places[tensor.name] = place
        return place

    def data(self, memory: Memory, name: str, tag: int, data: np.ndarray, rows: int | None = None) -> Buffer:
        """A buffer with content; equal contents are one buffer."""
        key = (memory, data.tobytes())
        if key not in self._shared:
            self._shared[key] = Buffer(name=name, memory=memory, rows=rows or len(data), data=data, tag=tag)
        return self._shared[key]

    def table(self, name: str, tag: int, entries: np.ndarray) -> Buffer:
        """A page with a unary table."""
        if len(entries) not in (256, 1024):
            self.problem(name, f"a table must have 256 or 1024 entries, not {len(entries)}. Quantize again")
            entries = np.zeros(256, np.int8)
        data = np.ascontiguousarray(entries.astype(np.int8)).view(np.uint8).reshape(-1, TABLE_ROW_BYTES)
        return self.data(Memory.TABLE, f"{name}/table", tag, data, PAGE_ROWS)
