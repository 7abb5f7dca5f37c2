"""Compiler: an integer graph to a program for one accelerator."""

from .build import Compiled, compile, compiled
from .ir import CompileError

__all__ = ["CompileError", "Compiled", "compile", "compiled"]
