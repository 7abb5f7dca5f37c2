"""Accelerated forms of `arch.numerics` and of the operators, compiled by numba and tested equal to the plain ones."""
