"""Reading and writing of Terrazzo's files: whole or not at all, and never trusted."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from .errors import UserError

__all__ = ["FileError", "read_bundle", "write_bundle", "write_bytes", "write_text"]


class FileError(UserError):
    """A file that is missing, truncated or of another kind; the message says which and what to do."""


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to a temporary file beside `path`, then rename it: the file is whole or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` of UTF-8 text."""
    return write_bytes(path, text.encode())


def write_bundle(path: str | Path, kind: str, header: dict, arrays: dict[str, np.ndarray]) -> Path:
    """Write a safetensors file whose metadata holds `kind` and the JSON `header`; equal contents give equal bytes."""
    metadata = {"terrazzo": kind, "header": json.dumps(header, sort_keys=True)}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = save(contiguous, metadata=metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    described = json.loads(data[8:end])  # safetensors writes the metadata in any order
    described["__metadata__"] = metadata
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return write_bytes(path, len(text).to_bytes(8, "little") + text + data[end:])


def read_bundle(path: str | Path, kind: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Read what `write_bundle` wrote. Raises FileError for a missing, truncated or foreign file."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(f"{path}: {kind} file must be readable: {error.strerror or error}") from None
    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FileError(
            f"{path}: {kind} file must be a whole safetensors file, not {len(data)} bytes that fail with: "
            f"{error}. Write it again with terrazzo."
        ) from None
    if metadata.get("terrazzo") != kind:
        found = metadata.get("terrazzo", "a foreign safetensors file")
        raise FileError(f"{path}: file must be a Terrazzo {kind}, not {found}.")
    try:
        return json.loads(metadata["header"]), arrays
    except (KeyError, ValueError) as error:
        raise FileError(f"{path}: {kind} header must be JSON, not {error}.") from None
