"""LOADs: data that stays is loaded once by the setup section, the rest in the frame, one user ahead."""

from __future__ import annotations

import numpy as np

from ..arch.accelerator import Accelerator
from ..arch.isa import Opcode, Region
from .ir import At, Buffer, Item, Memory, Span, row_bytes

__all__ = ["Image", "insert_loads", "load", "residents", "setup_loads"]

_ROWS_MAX = 65535


class Image:
    """The WEIGHTS region while it grows."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self._parts: list[np.ndarray] = []
        self._addresses: dict[bytes, int] = {}
        self.size = 0

    def address(self, data: np.ndarray) -> int:
        """Offset of memory rows (N, row bytes), which are appended unless equal ones are there."""
        key = data.tobytes()
        if key not in self._addresses:
            pitch = self.accelerator.beats(data.shape[1]) * self.accelerator.bus_bytes
            self._addresses[key] = self.size
            self._parts.append(np.pad(data, ((0, 0), (0, pitch - data.shape[1]))).ravel())
            self.size += self._parts[-1].size
        return self._addresses[key]

    def bytes(self) -> np.ndarray:
        """The region, uint8."""
        return np.concatenate([np.zeros(0, np.uint8), *self._parts])


def load(
    image: Image, memory: Memory, data: np.ndarray, row: int | At, tag: int, writes: tuple[Span, ...]
) -> Item:
    """A LOAD of data from the WEIGHTS region."""
    values = {"target": memory.value, "region": Region.WEIGHTS, "offset": image.address(data), "row": row}
    return Item(opcode=Opcode.LOAD, tag=tag, values=values | {"rows": len(data)}, writes=writes)


def residents(items: list[Item], memory: Memory) -> list[Buffer]:
    """Buffers with data that items read, in order of first use."""
    found = (span.buffer for item in items for span in item.reads)
    return list(dict.fromkeys(b for b in found if b.memory == memory and b.data is not None))


def setup_loads(image: Image, accelerator: Accelerator, buffers: list[Buffer]) -> list[Item]:
    """LOADs of resident buffers that have rows; neighbours of one memory are loaded together."""
    runs: list[list[Buffer]] = []
    for buffer in sorted(buffers, key=lambda b: (b.memory.value, b.row)):
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.memory == buffer.memory
            and last.row + len(last.data) == buffer.row
            and buffer.row + len(buffer.data) - runs[-1][0].row <= _ROWS_MAX
        ):
            runs[-1].append(buffer)
        else:
            runs.append([buffer])
    items = []
    for run in runs:
        first, data = (
            run[0],
            np.concatenate([b.data.reshape(-1, row_bytes(accelerator, b.memory)) for b in run]),
        )
        spans = tuple(Span(b, 0, len(b.data)) for b in run)
        items.append(load(image, first.memory, data, first.row, first.tag, spans))
    return items


def insert_loads(image: Image, items: list[Item], streamed: dict[Memory, bool]) -> list[Item]:
    """`items` with a LOAD for every buffer with data of the streamed memories: before the item that uses it first,
    or (where the memory's value is True) before the previous user of that memory, so that loading overlaps."""
    before: dict[int, list[Item]] = {}
    for memory, ahead in streamed.items():
        seen: set[Buffer] = set()
        previous = None
        for index, item in enumerate(items):
            used = [s.buffer for s in item.reads if s.buffer.memory == memory and s.buffer.data is not None]
            for buffer in dict.fromkeys(used):
                if buffer not in seen:
                    seen.add(buffer)
                    at = previous if ahead and previous is not None else index
                    span = Span(buffer, 0, len(buffer.data))
                    before.setdefault(at, []).append(
                        load(image, memory, buffer.data, At(buffer), buffer.tag, (span,))
                    )
            if used:
                previous = index
    return [each for index, item in enumerate(items) for each in (*before.get(index, []), item)]
