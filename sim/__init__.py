"""Simulators: reference (graph), functional (program), cycle (program and time), RTL (Verilator)."""
