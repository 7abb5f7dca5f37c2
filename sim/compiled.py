"""Functions compiled by numba and kept on disk, so that a fresh process does not compile again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numba

__all__ = ["compiled"]


def compiled(*uses: ModuleType) -> Callable[[Callable], Callable]:
    """A decorator: `numba.njit` without the interpreter's lock, cached.

    numba's cache sees changes of the function's own file alone; `uses` are the modules whose compiled functions or
    constants it takes, directly or through others, and a digest of their sources becomes part of the name that it is cached under.
    """
    digest = hashlib.sha256(b"".join(Path(module.__file__).read_bytes() for module in uses)).hexdigest()[:16]

    def decorate(function: Callable) -> Callable:
        if uses:
            function.__qualname__ = f"{function.__qualname__}_{digest}"
        return numba.njit(nogil=True, cache=True)(function)

    return decorate
