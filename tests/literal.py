"""Published integer functions, written from the papers, one number at a time and with nothing of ours.

I-ViT: arXiv 2207.01405, algorithms 1 and 2 and section 3.5, with the limits of the authors' program (1 / S rounded up,
exponents not below -n, sums of 31 bits). HeatViT: arXiv 2211.08110, equations 11 to 14, as a Q8.16 datapath.
"""

import math
from fractions import Fraction

INTEGER = 2**31 - 1


def shift_exp(i, s, n):
    i = i + (i >> 1) - (i >> 4)
    x0 = math.floor(-1 / s)
    i = max(i, n * x0)
    q = i // x0
    r = i - x0 * q
    return math.floor((Fraction(r, 2) - x0) * Fraction(2) ** (n - q))


def divided(e, total, bits, dividend):
    """e / total in units of 2**(1 - bits); the program has a dividend of 31 bits."""
    return (e * ((2**dividend - 1) // min(total, INTEGER))) >> (dividend + 1 - bits)


def shiftmax(row, s, bits=8):
    """Probabilities in units of 2**(1 - bits)."""
    e = [shift_exp(i - max(row), s, 15) for i in row]
    return [divided(x, sum(e), bits, 31) for x in e]


def shift_gelu(row, s, dividend=31):
    """GELU of a row in units of s / 128."""
    top = max(row)
    least = shift_exp(-top, 1.702 * s, 23)
    result = []
    for i in row:
        e = shift_exp(i - top, 1.702 * s, 23)
        result.append(i * divided(e, e + least, 8, dividend))
    return result


def layernorm(row):
    """(x - mean) / deviation in units of sqrt(len(row)) / 2**30."""
    mean = round(Fraction(sum(row), len(row)))
    y = [x - mean for x in row]
    variance, k = sum(x * x for x in y), 2**16
    for _ in range(10):
        k = (k + variance // k) // 2
    factor = INTEGER // k
    return [(x * factor) // 2 for x in y]


def _fixed(real):
    return round(real * 65536)


def _scaled(x, shift=16):
    """x >> shift, to the nearest, halves away from zero."""
    size = (abs(x) + (1 << (shift - 1))) >> shift
    return size if x >= 0 else -size


def polynomial_gelu(x):
    """Of a real number, with delta1 = 0.5."""
    x = _fixed(x)
    u = _scaled(x * _fixed(1 / math.sqrt(2)))
    t = min(abs(u), _fixed(1.769)) - _fixed(1.769)
    l_erf = (_scaled(_fixed(-0.2888) * _scaled(t * t)) + 65536) // 2
    return _scaled(x * (65536 + (l_erf if u > 0 else -l_erf if u < 0 else 0)), 17) / 65536


def polynomial_softmax(row, s):
    """Real probabilities of codes of step s, with delta2 = 0.5."""
    ln2, e = _fixed(math.log(2)), []
    for i in row:
        x = _fixed((i - max(row)) * s)
        z = -x // ln2
        p = x + z * ln2 + _fixed(1.353)
        e.append((_scaled(_fixed(0.3585) * _scaled(p * p)) + _fixed(0.344)) >> z)
    return [0.5 * x / sum(e) for x in e]


def plan_sigmoid(x):
    size = abs(x)
    if size >= 5:
        y = 1.0
    elif size >= 2.375:
        y = 0.03125 * size + 0.84375
    elif size >= 1:
        y = 0.125 * size + 0.625
    else:
        y = 0.25 * size + 0.5
    return 1 - y if x < 0 else y
