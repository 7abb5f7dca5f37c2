"""Integer graph to program: tiling, allocation, scheduling, encoding."""
