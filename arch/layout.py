"""How a tensor lies in scratchpad rows, and so in DRAM buffers: positions side by side, channels in chunks."""

from __future__ import annotations

import dataclasses

import numpy as np

from .accelerator import Accelerator
from .schemes import storage_bits

__all__ = ["Layout", "drained_lanes", "lane_bytes", "token_slots"]


def token_slots(accelerator: Accelerator, count: int) -> np.ndarray:
    """Slots of tokens 0..count of keys, values and logits: the tiles of a word follow each other from its begin."""
    word, within = np.divmod(np.arange(count), accelerator.tokens_per_word)
    return word * accelerator.depth + within


def drained_lanes(accelerator: Accelerator, part: np.ndarray, keys: bool, within: np.ndarray) -> np.ndarray:
    """Lanes that KEYS or VALUES write: of tile `part` of a block and column `within`, or of step `part` and bank `within`."""
    if not keys:
        return part * accelerator.drain + within
    word, tile = np.divmod(part, accelerator.depth // accelerator.columns)
    return word * accelerator.depth + tile * accelerator.columns + within


def lane_bytes(accelerator: Accelerator) -> tuple[np.ndarray, np.ndarray]:
    """First byte of every lane in a weight row, and bits of its codes."""
    bits = np.array([storage_bits(kind) for kind in accelerator.lanes.kinds])
    return (np.cumsum(bits) - bits) * accelerator.depth // 8, bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Place of a (positions, channels) tensor in rows of `columns` words of `depth` bytes.

    Position p is in word p % columns of rows base + (p // columns) * stride + ...; its channels follow each other
    in bytes (s8, u8) or little-endian byte pairs (s16), `depth` bytes per row. Unused bytes are 0.
    """

    positions: int
    channels: int
    wide: bool
    """Codes of 16 bits."""
    stride: int
    """Rows per tile of `columns` positions, at least ceil(channels * size / depth)."""
    block: tuple[int, int] = (1, 1)
    """Of an image (H, W, C) whose positions are blocks of so many rows and columns of pixels: a block's pixels, row by row,
    are its channels."""
    width: int = 1
    """Blocks side by side in such an image."""

    @property
    def code_bytes(self) -> int:
        """Bytes of one code."""
        return 2 if self.wide else 1

    def rows(self, accelerator: Accelerator) -> int:
        """Rows that the tensor takes."""
        return -(-self.positions // accelerator.columns) * self.stride

    def pack(self, accelerator: Accelerator, codes: np.ndarray) -> np.ndarray:
        """Codes (positions, channels) to bytes (rows, columns * depth), uint8."""
        columns, depth = accelerator.columns, accelerator.depth
        tiles = -(-self.positions // columns)
        data = np.zeros(
            (tiles * columns, self.stride * depth // self.code_bytes), dtype="<i2" if self.wide else "i1"
        )
        data[: self.positions, : self.channels] = self._blocks(np.asarray(codes))
        raw = data.view(np.uint8).reshape(tiles, columns, self.stride, depth)
        return np.ascontiguousarray(raw.transpose(0, 2, 1, 3)).reshape(tiles * self.stride, columns * depth)

    def unpack(self, accelerator: Accelerator, rows: np.ndarray) -> np.ndarray:
        """What `pack` was given, of an image its blocks: int64 codes (positions, channels)."""
        columns, depth = accelerator.columns, accelerator.depth
        raw = np.asarray(rows, dtype=np.uint8).reshape(-1, self.stride, columns, depth).transpose(0, 2, 1, 3)
        raw = np.ascontiguousarray(raw).reshape(-1, self.stride * depth)
        codes = raw.view("<i2" if self.wide else "i1").astype(np.int64)
        return codes[: self.positions, : self.channels]

    def _blocks(self, codes: np.ndarray) -> np.ndarray:
        """Codes by position and channel."""
        (height, width), channels = self.block, self.channels // (self.block[0] * self.block[1])
        pixels = codes.reshape(-1, height, self.width, width, channels)
        return pixels.swapaxes(1, 2).reshape(self.positions, self.channels)
