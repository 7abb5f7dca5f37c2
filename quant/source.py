"""A model to quantize: a torch module, the shape of its input, and its preprocessing."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..arch.errors import UserError
from ..arch.graph import Preprocessing
from .data import load_weights

__all__ = ["Source", "SourceError", "factory", "load"]


class SourceError(UserError):
    """A model that cannot be built; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A torch module in eval mode and what belongs to it."""

    name: str
    module: torch.nn.Module
    shape: tuple[int, int, int]
    """(H, W, C) of one image."""
    preprocessing: Preprocessing

    @property
    def sample(self) -> torch.Tensor:
        """A seeded random batch (2, C, H, W) for torch.export."""
        height, width, channels = self.shape
        return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


def factory(spec: str) -> Callable[[], torch.nn.Module]:
    """The callable named by "file.py:function" or "package.module:function". Raises SourceError."""
    where, _, function = spec.partition(":")
    if not where or not function:
        raise SourceError(f"model must be file.py:function or package.module:function, not {spec!r}")
    try:
        if where.endswith(".py"):
            if not Path(where).is_file():
                raise SourceError(f"model file must exist: {where}")
            module_spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            module = importlib.util.module_from_spec(module_spec)
            sys.modules[module_spec.name] = module
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(f"model {spec}: {where} must be importable; it fails with {error!r}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise SourceError(f"model {spec}: {where} must have a callable {function!r}")
    return found


def load(
    build: Callable[[], torch.nn.Module],
    *,
    name: str,
    shape: tuple[int, int, int],
    preprocessing: Preprocessing,
    weights: str | Path | None = None,
) -> Source:
    """Build a module, load its weights and put it into eval mode. Raises SourceError or DataError."""
    try:
        module = build()
    except Exception as error:
        raise SourceError(f"model {name}: must build without arguments; it fails with {error!r}") from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(f"model {name}: must be a torch.nn.Module, not {type(module).__name__}")
    if weights is not None:
        load_weights(module, weights)
    return Source(name=name, module=module.eval(), shape=shape, preprocessing=preprocessing)
