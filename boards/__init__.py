"""Boards: budgets, memory systems, clocks; and resource counts from synthesis."""
