"""Amaranth components of the accelerator and their Verilog."""
