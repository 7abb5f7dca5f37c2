"""Row assignment is optimal under the counts; scales fit; accumulators are bounded."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.arch.schemes import Scheme, codebook
from terrazzo.quant.gptq import nearest
from terrazzo.quant.rows import accumulator_range, assign, fit_scale, quantize_rows

KINDS = tuple(Scheme)


@settings(derandomize=True, max_examples=80, deadline=None)
@given(st.data())
def test_counts_are_exact_in_every_cell(data):
    drain = data.draw(st.sampled_from([1, 2, 4]))
    shares = data.draw(
        st.lists(st.integers(0, 3), min_size=len(KINDS), max_size=len(KINDS)).filter(lambda s: s[0] > 0)
    )
    mixture = {kind: share * drain for kind, share in zip(KINDS, shares, strict=True) if share}
    lanes, rows = sum(mixture.values()), data.draw(st.integers(1, 50))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    schemes = assign({kind: rng.random(rows) for kind in mixture}, mixture, drain)
    whole = rows // lanes * lanes
    assert (schemes[whole:] == Scheme.FIXED8).all()
    for block in schemes[:whole].reshape(-1, lanes):
        for residue in range(drain):
            counts = {kind: int((block[residue::drain] == kind).sum()) for kind in mixture}
            assert counts == {kind: count // drain for kind, count in mixture.items()}


def test_assignment_is_the_cheapest():
    rng = np.random.default_rng(0)
    mixture = {Scheme.FIXED8: 2, Scheme.FIXED4: 2, Scheme.POT4: 1}
    cost = {kind: rng.random(5) for kind in mixture}
    got = sum(cost[Scheme(s)][row] for row, s in enumerate(assign(cost, mixture, 1)))
    slots = [kind for kind, count in mixture.items() for _ in range(count)]
    best = min(sum(cost[kind][row] for row, kind in enumerate(p)) for p in itertools.permutations(slots))
    assert got == pytest.approx(best)


@pytest.mark.parametrize("scheme", KINDS)
def test_scale_is_better_than_no_clipping(scheme):
    rng = np.random.default_rng(1)
    weight, importance = rng.standard_t(3, size=(40, 64)), rng.random(64)
    scale = fit_scale(weight, scheme, importance)

    def error(s):
        return (weight - nearest(weight / s[:, None], scheme) * s[:, None]) ** 2 @ importance

    whole = np.abs(weight).max(axis=1) / codebook(scheme).max()
    assert (error(scale) <= error(whole) + 1e-12).all()
    assert error(scale).sum() < error(whole).sum()


@pytest.mark.parametrize("scheme, sqnr_db", [(Scheme.TERNARY, 7), (Scheme.BINARY, 4)])
def test_coarse_rows_stay_and_have_the_best_scale(scheme, sqnr_db):
    """Normal weights: the best binary scale is the mean magnitude (4.4 dB); the best ternary threshold gives 7.2 dB."""
    weight = np.random.default_rng(3).normal(size=(1, 8, 512))
    mixture = {Scheme.FIXED8: 1, scheme: 7}
    rows = quantize_rows(weight, np.eye(512)[None], np.ones(8), mixture, 1, -128, 127)
    assert not rows.fell_back and (rows.schemes == scheme).sum() == 7
    chosen = rows.schemes == scheme
    assert np.isin(rows.codes[chosen], codebook(scheme)).all()
    error = weight[0, chosen] - rows.codes[chosen] * rows.scale[chosen, None]
    assert 10 * np.log10((weight[0, chosen] ** 2).sum() / (error**2).sum()) > sqnr_db
    if scheme == Scheme.BINARY:
        np.testing.assert_allclose(rows.scale[chosen], np.abs(weight[0, chosen]).mean(axis=1), rtol=0.03)


def test_accumulator_range_is_reached():
    codes = np.random.default_rng(2).integers(-7, 8, (1, 4))
    sums = [int((codes[0] * x).sum()) for x in itertools.product((-3, -1, 2), repeat=4)]
    least, greatest = accumulator_range(codes, -3, 2)
    assert (least[0], greatest[0]) == (min(sums), max(sums))


def test_scale_grows_until_the_accumulator_fits():
    """200 equal weights and 13-bit inputs would need 200 * 127 * 4096 > 2**26."""
    weight = np.ones((1, 2, 200))
    weight[0, 1, 1:] = 1e-3
    hessian = np.eye(200)[None]
    rows = quantize_rows(weight, hessian, np.ones(2), {Scheme.FIXED8: 2}, 1, -4096, 4095)
    least, greatest = accumulator_range(rows.codes, -4096, 4095)
    assert np.maximum(-least, greatest).max() < 1 << 26
    assert rows.grown == 1
    assert np.abs(rows.codes[0] * rows.scale[0] - 1).max() < 0.02


def test_dead_rows_and_groups():
    weight = np.zeros((3, 1, 4))
    weight[1] = 0.5
    rows = quantize_rows(
        weight, np.stack([np.eye(4)] * 3), np.zeros(3), {Scheme.FIXED8: 1, Scheme.POT4: 1}, 1, 0, 255
    )
    assert rows.schemes.tolist() == [0, 0, 0] and (rows.scale > 0).all()
    assert not rows.codes[[0, 2]].any() and np.allclose(rows.codes[1] * rows.scale[1], 0.5, rtol=0.01)
