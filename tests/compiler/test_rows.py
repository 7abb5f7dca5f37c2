"""Rows on lanes: every row runs on a lane of its scheme or a Fixed-8 lane of its bank, and packing is what lanes read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch.accelerator import Lanes
from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.compiler import compiled
from terrazzo.compiler.rows import pack_norms, pack_params, pack_weights, segments
from terrazzo.sim import functional, reference
from terrazzo.sim.functional import Machine

from ..graphs import DEMO, OTHER, Builder, random_codes

ODD = dataclasses.replace(DEMO, lanes=dataclasses.replace(DEMO.lanes, fixed4=6), depth=16)
COARSE = dataclasses.replace(DEMO, lanes=Lanes(fixed8=8, fixed4=2, ternary=4, binary=6))
QUADS = dataclasses.replace(DEMO, lanes=Lanes(fixed8=8, fixed4=24, fixed4_quads=18))


@given(st.data())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_segments_cover_every_channel(data):
    a = data.draw(st.sampled_from([DEMO, OTHER, ODD, QUADS, COARSE]))
    refused = a.lanes.quads if data.draw(st.booleans()) else ()
    count = data.draw(st.integers(1, 70))
    schemes = data.draw(st.lists(st.sampled_from(list(Scheme)), min_size=count, max_size=count))
    order = np.array([i if data.draw(st.integers(0, 9)) else -1 for i in range(count)])
    if data.draw(st.booleans()):  # the mixture of the lanes, bank by bank
        kinds = [a.lanes.kinds[i % a.lanes.total] for i in range(count)]
        schemes = kinds
    parts = segments(order, np.array(schemes), a, a.depth, refused)
    at = 0
    for part in parts:
        size = part.steps * a.drain
        assert part.base == at and part.lanes.shape == (part.blocks, size)
        assert part.base == 0 or part.base % a.depth == 0
        channels = np.arange(at, at + part.blocks * size).reshape(part.blocks, size)
        assert (part.lanes % a.drain == channels % a.drain).all(), "a lane must be in its channel's bank"
        for block, lanes in zip(channels, part.lanes, strict=True):
            assert len(set(lanes)) == len(lanes), "a lane must run one row of a block"
            assert not set(lanes) & set(refused)
            for channel, lane in zip(block, lanes, strict=True):
                if channel < count and order[channel] >= 0:
                    assert a.lanes.kinds[lane] in (Scheme.FIXED8, schemes[order[channel]])
        if not part.permute:
            assert size <= a.lanes.fixed8 and (part.lanes == np.arange(size)).all()
        at += part.blocks * size
    assert at >= count
    unit = max(a.depth, a.lanes.fixed8)
    assert at <= (-(-count // a.drain) * a.drain if count <= a.lanes.fixed8 else -(-count // unit) * unit)


@pytest.mark.parametrize("accelerator", [DEMO, OTHER, ODD, COARSE], ids=["demo", "other", "odd", "coarse"])
def test_packed_weights_are_what_lanes_decode(accelerator):
    random = np.random.default_rng(0)
    codes = np.stack(
        [random.choice(codebook(k), (5, accelerator.depth)) for k in accelerator.lanes.kinds], axis=1
    )
    rows = pack_weights(accelerator, codes)
    assert rows.shape == (5, accelerator.weight_row_bytes)
    np.testing.assert_array_equal(Machine(accelerator)._decode_weights(rows), codes)


@pytest.mark.parametrize("channels, binary", [(16, True), (12, False)])
def test_binary_rows_need_whole_chunks(channels, binary):
    """Rows of the lanes' mixture: with zeros behind the channels of a chunk, those of Binary lanes run on Fixed-8 lanes."""
    b = Builder(0, (4, channels), COARSE.lanes, COARSE.drain)
    b.mixed = 1
    graph = b.graph(b.linear(b.linear(b.input, 40), 5))
    found = compiled(graph, COARSE)
    assert bool(found.macs_by_kind.get(Scheme.BINARY)) == binary and found.macs_by_kind[Scheme.TERNARY]
    images = random_codes(graph, 2, 0)
    outputs = functional.run(found.program, images)
    np.testing.assert_array_equal(outputs, np.asarray(reference.run(graph, images)).reshape(outputs.shape))


def test_wide_operands_take_the_fewest_blocks():
    """Of 64 rows, 4 of them Fixed-8, on 8 + 24 lanes of which 18 are left out: 14 lanes, and four blocks of these end where a row does."""
    a = QUADS
    schemes = np.array(([Scheme.FIXED8] + [Scheme.FIXED4] * 15) * 4)
    order = np.arange(64)
    assert [part.blocks for part in segments(order, schemes, a, a.depth)] == [2]
    parts = segments(order, schemes, a, a.depth, a.lanes.quads)
    assert [(part.blocks, part.steps * a.drain) for part in parts] == [(4, 14), (1, 8)]


def test_records_are_little_endian():
    rows = pack_params(DEMO, [0x1234, 1], [47, 2], [-2, 1 << 40], [9, 0])
    first = [0x34, 0x12, 47, 9, 0xFE, *[0xFF] * 5]
    assert rows.tolist() == [[*first, 1, 0, 2, 0, 0, 0, 0, 0, 0, 1]]
    rows = pack_norms(DEMO, np.array([-1, 2, 3, 4, 5]), np.array([-(1 << 40), 0, 0, 0, 7]))
    assert rows.shape == (2, 32)
    assert rows[0, :8].tolist() == [0xFF, 0xFF, 0, 0, 0, 0, 0, 0xFF] and rows[1, :8].tolist() == [
        5,
        0,
        7,
        0,
        0,
        0,
        0,
        0,
    ]
