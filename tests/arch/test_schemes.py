"""Every code of every scheme: what it is, how it is stored, and what is refused."""

import numpy as np
import pytest

from terrazzo.arch.schemes import Scheme, codebook, decode, encode, storage_bits

EXPECTED = {
    Scheme.FIXED8: list(range(-127, 128)),
    Scheme.FIXED4: list(range(-7, 8)),
    Scheme.POT4: [-64, -32, -16, -8, -4, -2, -1, 0, 1, 2, 4, 8, 16, 32, 64],
    Scheme.SP2_4: [-8, -6, -5, -4, -2, -1, 0, 1, 2, 4, 5, 6, 8],
    Scheme.TERNARY: [-1, 0, 1],
    Scheme.BINARY: [-1, 1],
}


@pytest.mark.parametrize("scheme", Scheme)
def test_codebook(scheme):
    assert codebook(scheme).tolist() == EXPECTED[scheme]


@pytest.mark.parametrize("scheme", Scheme)
def test_every_code_survives_storage(scheme):
    codes = codebook(scheme)
    patterns = encode(codes, scheme)
    assert patterns.dtype == np.uint8 and patterns.max() < 1 << storage_bits(scheme)
    assert len(set(patterns.tolist())) == len(codes)
    assert np.array_equal(decode(patterns, scheme), codes)
    assert np.array_equal(decode(encode(codes.reshape(1, -1, 1), scheme), scheme), codes.reshape(1, -1, 1))


def test_patterns_that_no_code_uses():
    """What the lanes make of them: the smallest two's complement number, or 0."""
    assert decode(np.array([0x80]), Scheme.FIXED8).tolist() == [-128]
    assert decode(np.array([8]), Scheme.FIXED4).tolist() == [-8]
    assert decode(np.array([7, 15]), Scheme.SP2_4).tolist() == [0, 0]
    assert decode(np.array([2]), Scheme.TERNARY).tolist() == [0]


@pytest.mark.parametrize("scheme", Scheme)
def test_every_other_number_is_refused(scheme):
    for number in sorted(set(range(-140, 141)) - set(EXPECTED[scheme])):
        with pytest.raises(
            ValueError, match=rf"of scheme {scheme.name} must be in its codebook, not {number}$"
        ):
            encode(np.array([EXPECTED[scheme][0], number]), scheme)


def test_codes_take_no_more_bits_than_they_need():
    assert [storage_bits(scheme) for scheme in Scheme] == [8, 4, 4, 4, 2, 1]
    assert all(1 << storage_bits(scheme) - 1 < len(EXPECTED[scheme]) for scheme in Scheme)
