"""The integer graph: operators on named integer tensors of one image, with everything that evaluation needs.

Structure is JSON, numbers are arrays ("constants") named `operator/field`, both in one safetensors file. Nothing
here mentions tiles, memories or instructions. Semantics is `arch.numerics`; `sim.reference` executes it.

Operators stand in execution order and every tensor is written once.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from . import legality
from .errors import UserError
from .files import FileError, read_bundle, write_bundle
from .operators import (
    Attention,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Drain,
    Elementwise,
    Gather,
    LayerNorm,
    Linear,
    MaxPool,
    Multiply,
    Operator,
    Preprocessing,
    Reshape,
    Residual,
    Second,
    Slice,
    Tensor,
    drained,
    reads,
    writes,
)

__all__ = [
    "Attention",
    "AvgPool",
    "Concat",
    "Constant",
    "Conv",
    "Drain",
    "Elementwise",
    "Gather",
    "Graph",
    "GraphError",
    "LayerNorm",
    "Linear",
    "MaxPool",
    "Multiply",
    "Operator",
    "Preprocessing",
    "Reshape",
    "Residual",
    "Second",
    "Slice",
    "Tensor",
    "drained",
    "reads",
    "writes",
]

VERSION = 1


class GraphError(UserError):
    """A graph that breaks its contract; the message lists every violation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Header:
    __pydantic_config__ = ConfigDict(extra="forbid")
    version: int
    name: str
    input: str
    output: str
    preprocessing: Preprocessing
    labels: tuple[str, ...] = ()
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]


_HEADER = TypeAdapter(_Header)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graph:
    """An integer graph; checked at construction."""

    name: str
    input: str
    output: str
    preprocessing: Preprocessing
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    constants: dict[str, np.ndarray] = dataclasses.field(repr=False)
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = list(legality.problems(self))
        if problems:
            raise GraphError(f"graph {self.name!r} is not valid:\n  " + "\n  ".join(problems))

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`."""
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def constant(self, operator: Operator, field: str) -> np.ndarray:
        """The array `NAME/field` of an operator."""
        return self.constants[f"{operator.name}/{field}"]

    def macs(self, operator: Operator) -> int:
        """Multiply-accumulates that the definition of `operator` needs for one image."""
        out = self.tensor(operator.output)
        if isinstance(operator, Linear | Conv):
            weight = self.constant(operator, "weight")
            positions = out.positions - (operator.prefix if isinstance(operator, Conv) else 0)
            return positions * int(weight.size)
        if isinstance(operator, Attention):
            queries, keys = self.tensor(operator.input), self.tensor(operator.keys)
            return out.positions * (keys.positions // operator.windows) * (queries.channels + out.channels)
        return 0

    def save(self, path: str | Path) -> Path:
        """Write the graph file."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(_Header) if f.name != "version"}
        header = _HEADER.dump_python(_Header(version=VERSION, **fields), mode="json")
        return write_bundle(path, "graph", header, self.constants)

    @classmethod
    def load(cls, path: str | Path) -> Graph:
        """Read and check a graph file. Raises FileError or GraphError."""
        raw, constants = read_bundle(path, "graph")
        if isinstance(raw, dict) and raw.get("version") != VERSION:
            raise FileError(
                f"{path}: graph version must be {VERSION}, not {raw.get('version')}. Quantize again."
            )
        try:
            header = _HEADER.validate_python(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise FileError(f"{path}: graph header field {where}: {first['msg']}.") from None
        fields = {f.name: getattr(header, f.name) for f in dataclasses.fields(_Header) if f.name != "version"}
        return cls(constants=constants, **fields)
