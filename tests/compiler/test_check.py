"""The check finds what the scheduler could get wrong: a missing or unbalanced semaphore, rows that are not an item's."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.arch import isa
from terrazzo.arch.isa import Engine, Instruction, Opcode
from terrazzo.compiler import check, compile
from terrazzo.compiler.ir import Buffer, Item, Memory, Span

from ..graphs import DEMO, OTHER, random_graph

PAIRS = [(producer, consumer) for producer in Engine for consumer in Engine]


def without(program, pair) -> list[tuple[int, int]]:
    """(signaller, waiter) of each token of a pair in the frame section."""
    bit = 1 << isa.semaphore(*pair)
    signals, waits = [], []
    for index, words in enumerate(program.instructions[program.frame_entry :]):
        instruction = isa.decode(words)
        signals += [index] * bool(instruction.signal & bit)
        waits += [index] * bool(instruction.wait & bit)
    return list(zip(signals, waits, strict=True))


@pytest.mark.parametrize("accelerator", [DEMO, OTHER], ids=["demo", "other"])
@pytest.mark.parametrize("seed", range(6))
def test_no_token_is_superfluous_or_missing(accelerator, seed):
    program = compile(random_graph(seed, accelerator), accelerator)
    frame = program.instructions[program.frame_entry :]
    check.section(accelerator, frame)
    removed = caught = 0
    for pair in PAIRS:
        for signaller, waiter in without(program, pair):
            words = frame.copy()
            for index, field in ((signaller, "signal"), (waiter, "wait")):
                instruction = isa.decode(words[index])
                instruction.values[field] &= ~(1 << isa.semaphore(*pair))
                words[index] = isa.encode(instruction)
            removed += 1
            try:
                check.section(accelerator, words)
            except AssertionError as error:
                assert "must wait for instruction" in str(error)
                caught += 1
    assert removed > 2 and caught >= 0.8 * removed, "intervals may be coarser than rows, but rarely are"


def words(*instructions: Instruction) -> np.ndarray:
    return np.stack([isa.encode(i) for i in (*instructions, Instruction(Opcode.END))])


def load(**values) -> Instruction:
    return Instruction(Opcode.LOAD, {"rows": 1, **values})


def test_unbalanced_semaphores():
    with pytest.raises(AssertionError, match="nothing before signals semaphore 0"):
        check.section(DEMO, words(load(wait=1)))
    with pytest.raises(AssertionError, match="semaphores must be 0 at END"):
        check.section(DEMO, words(load(signal=1)))
    with pytest.raises(AssertionError, match="belongs to another producer"):
        check.section(DEMO, words(load(signal=16)))
    with pytest.raises(AssertionError, match="belongs to another consumer"):
        check.section(DEMO, words(load(signal=2), load(wait=2)))


def test_too_many_pending():
    bit = 1 << isa.semaphore(Engine.LOAD, Engine.STORE)
    loads = [load(signal=bit, row=i) for i in range(256)]
    stores = [Instruction(Opcode.STORE, {"rows": 1, "wait": bit, "row": i}) for i in range(256)]
    with pytest.raises(AssertionError, match="could exceed 255"):
        check.section(DEMO, words(*loads, *stores))
    check.section(DEMO, words(*loads[:255], *stores[:255]))


def test_rows_outside():
    with pytest.raises(AssertionError, match="outside SCRATCHPAD"):
        check.section(DEMO, words(load(row=2047, rows=2)))
    buffer = Buffer(name="x", memory=Memory.SCRATCHPAD, rows=4, row=10)
    for rows, message in (((0, 4), None), ((0, 3), "row 13 is not its own"), ((0, 5), "leaves x")):
        item = Item(opcode=Opcode.LOAD, tag=0, values={}, writes=(Span(buffer, *rows),))
        if message is None:
            check.section(DEMO, words(load(row=10, rows=4)), [item])
        else:
            with pytest.raises(AssertionError, match=message):
                check.section(DEMO, words(load(row=10, rows=4)), [item])
