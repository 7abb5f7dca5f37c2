"""Compiler: an integer graph to a program for one accelerator."""

from .build import Compiled, Judge, compile, compiled
from .ir import CompileError

__all__ = ["CompileError", "Compiled", "Judge", "compile", "compiled"]
