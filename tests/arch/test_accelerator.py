"""Accelerator parameters: relations, derived values, hash."""

import dataclasses

import pytest

from terrazzo.arch.accelerator import Accelerator, AcceleratorError, Lanes
from terrazzo.arch.schemes import Scheme

SMALL = Accelerator(
    lanes=Lanes(fixed8=8, fixed4=4, pot4=2, sp2_4=2),
    columns=4,
    depth=8,
    drain=2,
    vector=4,
    scratchpad_regions=2,
    scratchpad_rows=64,
    weight_rows=64,
    param_rows=64,
    norm_rows=16,
    operand_chunks=32,
    row_scales=8,
    row_maxima=8,
    row_moments=8,
    index_rows=64,
    table_pages=1,
    instructions=64,
    bus_bytes=16,
    burst_beats=16,
)


def test_derived_values():
    assert SMALL.multipliers == 16 * 4 * 8
    assert SMALL.scratchpad_row_bytes == 32
    assert SMALL.weight_row_bytes == 8 * 8 + 8 * 4
    assert SMALL.beats(33) == 3
    assert SMALL.lanes.kinds[7:9] == (Scheme.FIXED8, Scheme.FIXED4)


def test_hash_names_every_parameter():
    assert Accelerator.from_dict(SMALL.to_dict()).hash == SMALL.hash
    for field in dataclasses.fields(Accelerator):
        value = getattr(SMALL, field.name)
        if field.name == "operand_slots":
            assert dataclasses.replace(SMALL, operand_slots=0).hash != SMALL.hash
        elif isinstance(value, int) and field.name not in ("depth", "columns", "drain", "vector", "private"):
            assert dataclasses.replace(SMALL, **{field.name: value * 2}).hash != SMALL.hash
    wide = dataclasses.replace(SMALL, lanes=Lanes(fixed8=16))
    assert dataclasses.replace(wide, private=2).hash != wide.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"columns": 3, "lanes": Lanes(fixed8=4)},
            r"columns must be a power of two with lanes\.fixed8 \(4\) below depth, not 3",
        ),
        (
            {"columns": 3, "lanes": Lanes(fixed8=16), "private": 2},
            r"columns must be a power of two with private \(2\) above 1, not 3",
        ),
        ({"columns": 16}, r"columns must be 2\.\.depth \(8\), not 16"),
        ({"drain": 8}, r"drain must be at most depth / 2 \(4\), not 8"),
        ({"lanes": Lanes(fixed8=8, pot4=3)}, r"lanes\.pot4 must be a multiple of drain \(2\), not 3"),
        (
            {"lanes": Lanes(fixed8=2)},
            r"lanes\.fixed8 must be a power of two and at least columns \(4\), not 2",
        ),
        ({"operand_slots": 1}, r"operand_slots must be 0 or 3, not 1"),
        ({"instructions": 0}, r"instructions must be positive, not 0"),
        ({"norm_rows": -1}, r"norm_rows must be 0 or more, not -1"),
        ({"burst_beats": 512}, r"burst_beats must be at most 256, not 512"),
        ({"private": 4}, r"private must be at most 2 \* fixed8 / depth \(2\) and 16, not 4"),
        (
            {"lanes": Lanes(fixed8=8, fixed4=4, fixed4_dynamic=6)},
            r"lanes\.fixed4_dynamic must be a multiple of drain \(2\) and at most lanes\.fixed4 \(4\), not 6",
        ),
        (
            {"lanes": Lanes(fixed8=8, fixed4=4, fixed4_dynamic=4), "drain": 1},
            r"columns \(4\) and drain \(1\) must be even with lanes\.fixed4_dynamic above 0",
        ),
        (
            {"lanes": Lanes(fixed8=8, fixed4=4, fixed4_operand_bits=10)},
            r"lanes\.fixed4_operand_bits must be 4\.\.9, not 10",
        ),
        (
            {"lanes": Lanes(fixed8=8, fixed4=4, fixed4_operand_bits=4, fixed4_digits=True)},
            r"lanes\.fixed4_operand_bits must be at least 5 with lanes\.fixed4_digits, not 4",
        ),
        (
            {"lanes": Lanes(fixed8=8, binary=2), "depth": 4},
            r"depth must be at least 8 with lanes\.binary \(2\) above 0, not 4",
        ),
        ({"plain_steps": 3}, r"plain_steps must be 1 or 2, not 3"),
        ({"plain_steps": 2, "drain": 4}, r"drain must be at most 2 with plain_steps=2, not 4"),
        ({"weight_rows": 0}, r"weight_rows must be positive, not 0"),
        ({"row_scales": 0}, r"row_maxima must be 0 with row_scales=0, not 8"),
        ({"norm_rows": 0}, r"row_moments must be 0 with norm_rows=0, not 8"),
        ({"row_maxima": -1}, r"row_maxima must be 0 or more, not -1"),
        ({"drain_stages": 0}, r"drain_stages must be positive, not 0"),
        ({"drain_stages": 5}, r"drain_stages must be 1\.\.4, not 5"),
        ({"tree_stages": 5}, r"tree_stages must be 1\.\.4, not 5"),
        (
            {"lanes": Lanes(fixed8=8, fixed4=8, fixed4_quads=4, fixed4_triples=6)},
            r"lanes\.fixed4_triples must be a multiple of 3 and at most lanes\.fixed4 - lanes\.fixed4_quads \(4\), not 6",
        ),
        ({"broadcast_stages": 9}, r"broadcast_stages must be 1\.\.8, not 9"),
    ],
)
def test_relations_are_checked(change, message):
    with pytest.raises(AcceleratorError, match=message):
        dataclasses.replace(SMALL, **change)


def test_foreign_records_are_refused():
    with pytest.raises(AcceleratorError, match=r"^accelerator parameter wings: "):
        Accelerator.from_dict({**SMALL.to_dict(), "wings": 2})
    with pytest.raises(AcceleratorError, match=r"^accelerator parameter columns: "):
        Accelerator.from_dict({**SMALL.to_dict(), "columns": "many"})
