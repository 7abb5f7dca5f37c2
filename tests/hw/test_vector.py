"""The vector engine against arch.numerics, and cycle for cycle against its timing model, with random stalls."""

from __future__ import annotations

import numpy as np
import pytest

from terrazzo.arch.isa import VectorOp

from ..sampling import pairs
from .vector_bench import bench, check
from .vector_model import random_instruction, random_memory, random_tables

PARAMETERS = [(2, 4, 1), (2, 4, 2), (2, 8, 2), (2, 8, 4), (4, 8, 4), (3, 8, 4), (5, 8, 2), (5, 16, 8)]
STALLS = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.3), (0.6, 0.6)]


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("parameters, seed", pairs(PARAMETERS, 5))
def test_random_instructions(parameters, op, seed):
    """All kinds of memory contents, sizes and stalls."""

    def make(rng, a):
        return [
            random_instruction(rng, a, op, int(rng.integers(1, 3 * a.columns + 1)), int(rng.integers(1, 40)))
            for _ in range(2)
        ]

    read_ready, write_ready = STALLS[seed % len(STALLS)]
    check(parameters, make, seed=seed, read_ready=read_ready, write_ready=write_ready, kind=seed)


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("positions, channels", [(1, 1), (1, 17), (3, 17), (7, 3), (2, 8), (5, 64), (9, 1)])
def test_awkward_sizes(op, positions, channels):
    """One position, channels that fill neither steps nor words, many tiles of one step."""
    for kind in range(2):
        check(
            (2, 8, 4),
            lambda rng, a: [random_instruction(rng, a, op, positions, channels)],
            seed=channels + kind,
            write_ready=1.0 - 0.5 * kind,
            kind=kind,
        )


@pytest.mark.parametrize("op", VectorOp)
@pytest.mark.parametrize("kind", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_extreme_values(op, kind, seed):
    """Saturating sums, constant rows, one dominant logit."""
    check((2, 8, 2), lambda rng, a: [random_instruction(rng, a, op, 4, 29)], seed=seed, kind=kind)


def test_layernorm_of_many_channels():
    """The largest variance: 2047 channels at both ends of their range."""
    check((2, 8, 4), lambda rng, a: [random_instruction(rng, a, VectorOp.LAYERNORM, 2, 2047)], seed=3, kind=2)


def test_softmax_of_empty_exponentials():
    """A row whose E sum to 0 gets m = 0, n = 1."""
    run = bench(2, 8, 2)
    a = run.accelerator
    rng = np.random.default_rng(0)
    tables = random_tables(rng, a.table_pages) | {"exp": np.zeros(256, dtype=np.int64)}
    instruction = random_instruction(rng, a, VectorOp.SOFTMAX, 2, 9)
    scales = run.run(random_memory(rng, a, 0), tables, {}, [instruction], seed=0, read_ready=1, write_ready=1)
    assert scales == {instruction.param: [(0, 1), (0, 1)]}


@pytest.mark.parametrize("masked", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("logits", [-2048, 2047, None])
def test_softmax_masks(masked, logits):
    """Masked keys get E = 0, also beside the lowest logits; a row of nothing else gets m = 0, n = 1."""
    run = bench(2, 8, 2)
    a, rng = run.accelerator, np.random.default_rng(int(10 * masked))
    given = {"bias": 1, "src": 0, "residual_row": 1024, "dst": 2048, "src_stride": 4, "residual_stride": 4}
    instruction = random_instruction(rng, a, VectorOp.SOFTMAX, 4, 13, **given)
    memory, tables = random_memory(rng, a, 0), random_tables(rng, a.table_pages)
    codes = memory.view("<i2")
    codes[:8] = rng.integers(-2048, 2048, codes[:8].shape) if logits is None else logits
    biases = rng.integers(-30719, 30720, codes[:8].shape)
    hidden = rng.random(biases.shape) < masked
    codes[1024:1032] = np.where(hidden, -32768, biases)
    scales = run.run(memory, tables, {}, [instruction], seed=0, read_ready=1, write_ready=1)
    columns = hidden.reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 16)[:, :13]
    tiles = (memory[2048 + tile * instruction.dst_stride :][:2] for tile in range(2))
    e = np.stack(list(tiles)).reshape(2, 2, 2, 8).transpose(0, 2, 1, 3).reshape(4, 16)
    assert not e[:, :13][columns].any() and not e[:, 13:].any()
    assert (e.max(axis=1) == np.where(columns.all(axis=1), 0, 255)).all()
    rows = np.array([scales[instruction.param + tile] for tile in range(2)]).reshape(4, 2)
    assert ((rows == (0, 1)).all(axis=1) == columns.all(axis=1)).all()


@pytest.mark.parametrize("lo, kept", [(-32768, "all"), (32767, "some"), (-32767, "some")])
def test_compact_thresholds(lo, kept):
    """The ends of the range: the lowest threshold keeps everything, the highest only its equals."""
    count = 9

    def make(rng, a):
        return [random_instruction(rng, a, VectorOp.COMPACT, count, 1, lo=lo, src_wide=1, count_register=7)]

    check((2, 8, 4), make, seed=5, kind=2)
    registers = bench(2, 8, 4).registers
    assert registers[7] == count if kept == "all" else 0 < registers[7] < count


@pytest.mark.parametrize(
    "op, cycles, fixed, given",
    [
        (VectorOp.ELEMENTWISE, 5 * 16, 27, {"residual": 0}),
        (VectorOp.ELEMENTWISE, 5 * 16 * 2, 27, {"residual": 1, "table": 0}),
        (VectorOp.LAYERNORM, 5 * 16 * 2, 46, {"summed": 0}),
        (VectorOp.LAYERNORM, 5 * 16, 46, {"summed": 1}),
        (VectorOp.SOFTMAX, 5 * 16 * 2, 52, {"bias": 0, "measured": 0}),
        (VectorOp.SOFTMAX, 5 * 16, 52, {"bias": 0, "measured": 1}),
        (VectorOp.SOFTMAX, 5 * 16 * 4, 52, {"bias": 1}),
        (VectorOp.MULTIPLY, 5 * 16 * 2, 27, {}),
        (VectorOp.COMPACT, 5 * (2 + 1), 33, {}),
        (VectorOp.GATHER, 10 * 16, 31, {"src_wide": 1}),
        (VectorOp.GATHER, 10 * 8, 31, {"src_wide": 0}),
    ],
)
def test_throughput(op, cycles, fixed, given):
    """5 tiles of 16 steps: one step per cycle in every pass, and nothing between tiles; one position in GATHER."""
    taken = check((2, 8, 4), lambda rng, a: [random_instruction(rng, a, op, 10, 64, **given)], seed=1)
    assert cycles < taken <= cycles + fixed


@pytest.mark.parametrize("parameters", [(2, 8, 4), (5, 8, 2)])
@pytest.mark.parametrize("positions, channels", [(7, 1), (5, 64)])
def test_layernorm_by_row_moments(parameters, positions, channels):
    """Tiles of one step and of more than their moments take; a short one right after the other."""
    for seed in range(2):
        check(
            parameters,
            lambda rng, a: [
                random_instruction(rng, a, VectorOp.LAYERNORM, count, channels, summed=1)
                for count in (positions, 2)
            ],
            seed=seed,
            read_ready=STALLS[seed][0],
            write_ready=STALLS[seed][1],
            kind=seed,
        )


def test_throughput_of_gathered_positions_of_one_step():
    """Five cycles for each: the index memory, the division and the row's address follow each other."""
    taken = check((2, 8, 4), lambda rng, a: [random_instruction(rng, a, VectorOp.GATHER, 20, 1)], seed=1)
    assert 20 * 5 < taken <= 20 * 5 + 31


@pytest.mark.parametrize("halt_at", [0, 5, 30, 60])
def test_halt(halt_at):
    """Nothing is asked for and nothing completes while `halt` is high."""
    run = bench(2, 8, 2)
    a, rng = run.accelerator, np.random.default_rng(halt_at)
    instruction = random_instruction(rng, a, VectorOp.LAYERNORM, 6, 30)
    memory, tables = random_memory(rng, a, 0), random_tables(rng, a.table_pages)
    run.run(memory, tables, {}, [instruction], seed=1, read_ready=1, write_ready=1, halt_at=halt_at)
