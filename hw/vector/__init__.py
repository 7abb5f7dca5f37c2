"""The vector engine: element-wise operations, LayerNorm and softmax (docs/machine.md, VECTOR)."""

from .engine import Engine

__all__ = ["Engine"]
