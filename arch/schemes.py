"""Weight schemes: the codes a row may hold, and how a code is stored in one to eight bits."""

from __future__ import annotations

import enum
import functools

import numpy as np

__all__ = ["Scheme", "codebook", "decode", "encode", "storage_bits"]


class Scheme(enum.IntEnum):
    """How the weights of one output row are coded; every code is an integer times the row's scale."""

    FIXED8 = 0
    """-127..127."""
    FIXED4 = 1
    """-7..7."""
    POT4 = 2
    """0 and plus or minus 1, 2, 4, ... 64 (powers of two)."""
    SP2_4 = 3
    """0 and plus or minus 1, 2, 4, 5, 6, 8 (sums of two powers of two)."""
    TERNARY = 4
    """-1, 0, 1."""
    BINARY = 5
    """-1, 1: no zero, so that a row of it fills whole chunks (docs/machine.md, "Lanes")."""


_MAGNITUDES = {
    Scheme.FIXED8: tuple(range(128)),
    Scheme.FIXED4: tuple(range(8)),
    Scheme.POT4: (0, 1, 2, 4, 8, 16, 32, 64),
    Scheme.SP2_4: (0, 1, 2, 4, 5, 6, 8),
    Scheme.TERNARY: (0, 1),
    Scheme.BINARY: (1,),
}
_STORAGE_BITS = {
    Scheme.FIXED8: 8,
    Scheme.FIXED4: 4,
    Scheme.POT4: 4,
    Scheme.SP2_4: 4,
    Scheme.TERNARY: 2,
    Scheme.BINARY: 1,
}


def codebook(scheme: Scheme) -> np.ndarray:
    """All codes of `scheme`, ascending, int64."""
    magnitudes = np.array(_MAGNITUDES[scheme], dtype=np.int64)
    return np.unique(np.concatenate([-magnitudes, magnitudes]))


def storage_bits(scheme: Scheme) -> int:
    """Bits that one code takes in a weight memory."""
    return _STORAGE_BITS[scheme]


def encode(codes: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The stored bit patterns of `codes` (any shape), uint8.

    Fixed-8 and Fixed-4 are two's complement. The others are sign (the highest bit) and an index (those below, of Binary
    none) into the ascending magnitudes. Raises ValueError when a code is not in the codebook.
    """
    codes = np.asarray(codes)
    narrow = codes.astype(np.int8)
    patterns = _patterns(scheme)[narrow.view(np.uint8)]
    foreign = (patterns < 0) | (narrow != codes)
    if foreign.any():
        raise ValueError(
            f"weight codes of scheme {scheme.name} must be in its codebook, not {codes[foreign].flat[0]}"
        )
    return patterns.astype(np.uint8)


@functools.cache
def _patterns(scheme: Scheme) -> np.ndarray:
    """The bit pattern of each 8-bit code, taken as unsigned; -1 where it is not in the codebook."""
    codes = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.int16)
    magnitudes = np.array(_MAGNITUDES[scheme], dtype=np.int16)
    index = np.searchsorted(magnitudes, np.abs(codes))
    found = magnitudes[np.minimum(index, len(magnitudes) - 1)] == np.abs(codes)
    if scheme in (Scheme.FIXED8, Scheme.FIXED4):
        return np.where(found, codes & (2 ** storage_bits(scheme) - 1), -1).astype(np.int16)
    return np.where(found, index | (codes < 0) << storage_bits(scheme) - 1, -1).astype(np.int16)


def decode(patterns: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The codes of stored bit patterns, int64: the inverse of `encode`."""
    patterns = np.asarray(patterns, dtype=np.int64)
    half = 2 ** (storage_bits(scheme) - 1)
    if scheme in (Scheme.FIXED8, Scheme.FIXED4):
        return (patterns ^ half) - half
    magnitudes = np.array(_MAGNITUDES[scheme] + (0,) * (half - len(_MAGNITUDES[scheme])), dtype=np.int64)
    return np.where(patterns & half, -1, 1) * magnitudes[patterns & half - 1]
