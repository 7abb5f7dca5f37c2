"""Compiler: an integer graph to a program for one accelerator."""

from .build import compile
from .ir import CompileError

__all__ = ["CompileError", "compile"]
