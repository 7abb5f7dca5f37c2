"""The listing of one tiny program, kept as a file: a change of any instruction shows here.

Write it anew with `UPDATE_GOLDEN=1 python -m pytest tests/compiler/test_listing.py` and read the difference.
"""

import os
from pathlib import Path

import numpy as np

from terrazzo.arch import isa
from terrazzo.compiler import compile
from terrazzo.compiler.listing import listing

from ..graphs import DEMO, Builder, random_graph

GOLDEN = Path(__file__).parent / "golden" / "tiny.txt"


def tiny():
    """An image of 2 x 2 pixels through a class token, attention with two heads, and a residual."""
    b = Builder(0, (2, 2, 3), DEMO.lanes, DEMO.drain, mixed=1.0)
    x = b.conv(b.input, 16, (1, 2), (1, 2), prefix=1, dtype="s16", residual=b.constant((3, 16)))
    y = b.layernorm(x)
    x = b.linear(b.attention(b.linear(y, 16), b.linear(y, 16), b.linear(y, 16), 2), 16, "s16", residual=x)
    return b.graph(b.elementwise(b.slice(x, 0, 1), table=256), "tiny")


def test_golden_program():
    text = listing(compile(tiny(), DEMO))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text(), "the program changed; see this file's docstring"


def test_compiling_is_deterministic():
    for seed in range(4):
        first, second = (compile(random_graph(seed, DEMO), DEMO) for _ in range(2))
        np.testing.assert_array_equal(first.instructions, second.instructions)
        np.testing.assert_array_equal(first.weights, second.weights)


def test_listing_shows_every_instruction():
    program = compile(tiny(), DEMO)
    text = listing(program)
    for words in program.instructions:
        assert isa.disassemble(isa.decode(words)) in text
    assert "setup:" in text and "frame:" in text
    for layer in ("attention", "layernorm", "conv"):
        assert f": {layer} " in text
