"""Exact products: equal to int64 matrix products for every shape and every extreme of the codes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrazzo.sim.kernels import products

FORMS = [
    (products.multiply_plain, products.pack_plain),
    pytest.param(
        (products.multiply_avx2, products.pack_avx2),
        marks=pytest.mark.skipif(not products.AVX2, reason="this processor has no AVX2"),
    ),
    pytest.param(
        (products.multiply_vnni, products.pack_vnni),
        marks=pytest.mark.skipif(not products.VNNI, reason="this processor has no AVX512-VNNI"),
    ),
]


def multiply(form, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x @ w.T by a form, its excess removed modulo 2**32; x int8 or uint8 (rows, K), w int8 (O, K)."""
    rows, depth = x.shape
    padded = np.full((rows, products.depth4(depth)), 77, np.uint8)  # weights are 0 there
    padded[:, :depth] = x.view(np.uint8)
    multiply, pack = form
    packed = pack(w)
    out = np.full((-(-rows // products.ROWS) * products.ROWS, packed.shape[0] * products.LANES), -1, np.int32)
    multiply(padded, rows, packed, x.dtype == np.int8, out)
    sums = out[:rows, : len(w)].astype(np.int64)
    if x.dtype == np.int8:
        sums -= products.excess(w)
    return sums.astype(np.int32)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 13),
    depth=st.integers(1, 70),
    outputs=st.integers(1, 150),
    signed=st.booleans(),
    extreme=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_exact(form, rows, depth, outputs, signed, extreme, seed):
    random = np.random.default_rng(seed)
    lo, hi = (-128, 127) if signed else (0, 255)
    if extreme:
        x, w = random.choice([lo, hi], (rows, depth)), random.choice([-128, 127], (outputs, depth))
    else:
        x, w = random.integers(lo, hi + 1, (rows, depth)), random.integers(-128, 128, (outputs, depth))
    found = multiply(form, x.astype(np.int8 if signed else np.uint8), w.astype(np.int8))
    assert np.array_equal(found, x @ w.T)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("code", [255, 0, 1])
def test_long_sums_of_extreme_codes_do_not_saturate(form, code):
    x = np.full((5, 16384), code, np.uint8)
    w = np.repeat(np.array([[-128], [127], [1]], np.int8), 16384, axis=1)
    expected = np.broadcast_to(np.array([-128, 127, 1]) * code * 16384, (5, 3))
    assert np.array_equal(multiply(form, x, w), expected)
    assert np.array_equal(
        multiply(form, x.view(np.int8), w), expected // max(code, 1) * np.int8(x[0, 0].view(np.int8))
    )


@pytest.mark.parametrize("form", FORMS)
def test_every_pair_of_codes(form):
    x, w = np.arange(-128, 128, dtype=np.int8)[:, None], np.arange(-128, 128, dtype=np.int8)[:, None]
    assert np.array_equal(multiply(form, x, w), x.astype(int) * w.astype(int).T)
    assert np.array_equal(multiply(form, x.view(np.uint8), w), x.view(np.uint8).astype(int) * w.astype(int).T)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_product_is_modulo_32_bits(dtype):
    random, info = np.random.default_rng(0), np.iinfo(dtype)
    x = random.integers(info.min, info.max + 1, (6, 150_001)).astype(dtype)
    w = random.integers(-128, 128, (3, 150_001)).astype(np.int8)
    x[0], w[0] = info.max, 127
    x[1], w[1] = info.min, -128
    found = products.product(x[:, ::3], w[:, ::3])
    assert np.array_equal(found, (x[:, ::3].astype(np.int64) @ w[:, ::3].astype(np.int64).T).astype(np.int32))
    found = products.product(x, w)
    assert np.array_equal(found, (x.astype(np.int64) @ w.astype(np.int64).T).astype(np.int32))
