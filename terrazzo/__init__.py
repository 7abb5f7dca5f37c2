"""Terrazzo: generator and simulator of FPGA/ASIC accelerators for vision models."""
