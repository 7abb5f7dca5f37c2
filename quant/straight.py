"""The integer arithmetic of `arch.numerics` in torch, exact, with straight-through gradients.

Codes are float32 tensors that hold integers (16 bits fit). Exact results are computed in float64, which holds
every 48-bit sum of a requantizer, or in int64; gradients are those of the real function that the codes approximate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..arch import numerics
from ..arch.errors import UserError
from ..arch.schemes import Scheme, codebook

__all__ = ["attend", "layernorm", "lookup", "nearest", "requantize", "residual_add", "scaled", "straight"]

_CONSTANT_LIMIT = 2.0**46


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, surrogate, exact):
        return exact.to(surrogate.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight(surrogate: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The value of `exact` with the gradient of `surrogate` (same shape)."""
    return _Straight.apply(surrogate, exact.detach())


def scaled(
    scales: torch.Tensor, offsets: torch.Tensor, sums: torch.Tensor, zero_point: int
) -> tuple[torch.Tensor, ...]:
    """m, n and C of `builder.scaled`, all float64 (O,), for v = scales * (acc - sums) + offsets + zero_point.

    Raises UserError where a scale or an offset is not finite or too large.
    """
    if not bool(((scales >= 0) & (scales < 32767)).all() and offsets.isfinite().all()):
        raise UserError("training must keep steps and offsets finite, but has diverged; lower the rate")
    mantissa, exponent = torch.frexp(scales)
    m, n = torch.floor(mantissa * 65536 + 0.5), 16.0 - exponent
    m, n = torch.where(m == 65536, 32768.0, m), torch.where(m == 65536, n - 1, n)
    found = torch.zeros_like(scales, dtype=torch.bool)
    result = [torch.zeros_like(scales) for _ in range(3)]
    for limit in range(39 if zero_point else 47, 0, -1):
        n_i = n.clamp(max=limit)
        m_i = torch.where(n > limit, torch.floor(scales * 2.0**limit + 0.5), m)
        n_i = torch.where(scales == 0, 1.0, n_i)
        bias = torch.round((offsets + zero_point) * torch.exp2(n_i)) - sums * m_i
        new = (bias.abs() < _CONSTANT_LIMIT) & ~found
        parts = (m_i, n_i, bias + torch.exp2(n_i - 1))
        result = [torch.where(new, part, old) for part, old in zip(parts, result, strict=True)]
        found |= new
        if bool(found.all()):
            break
    return tuple(result)


def requantize(acc, m, n, constant, lo: int, hi: int) -> torch.Tensor:
    """numerics.requantize of integers in any float type; float64."""
    found = acc.detach().double() * m
    return found.add_(constant).mul_(torch.exp2(-n)).floor_().clamp_(lo, hi)


def residual_add(t, r, m: int, n: int, lo: int, hi: int) -> torch.Tensor:
    """numerics.residual_add of float64 `t` and codes `r`; float64."""
    other = torch.floor((r.detach().double() * m + 2.0 ** (n - 1)) * 2.0**-n)
    return (t.clamp(-32768, 32767) + other).clamp(-32768, 32767).clamp(lo, hi)


def lookup(index: torch.Tensor, codes: torch.Tensor, real: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    """codes[index + len / 2] of clamped codes; the gradient is that of a line through `real` with `slope` there."""
    half = len(codes) // 2
    place = index.detach().clamp(-half, half - 1).long() + half
    line = real.float()[place] + (index - index.detach()) * slope.float()[place]
    return straight(line, codes.float()[place])


def nearest(values: torch.Tensor, schemes: torch.Tensor) -> torch.Tensor:
    """The code nearest to each value (O, K), row by row on the codebook of `schemes` (O,); gradient 1 inside it."""
    exact, top = torch.empty_like(values), torch.empty_like(values[:, :1])
    for scheme in schemes.unique().tolist():
        rows, book = schemes == scheme, codebook(Scheme(scheme))
        if scheme in (Scheme.FIXED8, Scheme.FIXED4):
            exact[rows] = values.detach()[rows].round().clamp(int(book[0]), int(book[-1]))
        else:
            codes = torch.as_tensor(book, dtype=values.dtype, device=values.device)
            exact[rows] = codes[torch.bucketize(values.detach()[rows], (codes[1:] + codes[:-1]) / 2)]
        top[rows] = float(book[-1])
    return straight(torch.maximum(torch.minimum(values, top), -top), exact)


def layernorm(x, gain, offset, scale: float, integers: tuple, eps: int, lo: int, hi: int) -> torch.Tensor:
    """numerics.layernorm of s16 codes `x` of step `scale`; `integers` are g, b (float64) and n.

    The surrogate is a LayerNorm with `gain` and `offset` in codes of the output.
    """
    g, b, n = integers
    depth = x.shape[-1]
    codes = x.detach().long()
    total = codes.sum(-1, keepdim=True)
    v = depth * (codes * codes).sum(-1, keepdim=True) - total * total + eps
    # the one even e with 2**14 <= v * 2**-e < 2**16; v < 2**54, so a float64 tells its leading bit up to rounding
    leading = torch.frexp(v.double())[1].long() - 1
    leading = torch.where((v >> leading.clamp(min=0)) == 0, leading - 1, leading)
    e = (leading - 14) // 2 * 2
    mantissa = torch.where(e >= 0, v >> e.clamp(min=0), v << (-e).clamp(min=0))
    rsqrt = torch.as_tensor(numerics.rsqrt_table(), device=x.device)
    k = 13 + e // 2
    centred = (depth * codes - total) * rsqrt[mantissa >> 6]
    t = ((centred + (torch.ones_like(k) << (k - 1))) >> k).clamp(-(1 << 17), (1 << 17) - 1)
    exact = torch.floor((t.double() * g + b) * 2.0**-n).clamp(lo, hi)
    real_eps = eps / depth**2 * scale**2
    normal = F.layer_norm(x * scale, (depth,), None, None, real_eps)
    return straight((normal * gain.float() + offset.float()).clamp(lo, hi), exact)


def attend(q, k, v, *, logits: tuple, factor, m2, n2, exp, bias, ratio, lo: int, hi: int) -> torch.Tensor:
    """Attention of codes (N, windows, heads, T, d) as numerics.md defines it.

    `logits` are m, n, C and `factor` their real ratio, `ratio` the real one of values to outputs; all per head and
    broadcast against (heads, T, Tk). `bias` is int64 in logit steps, numerics.MASKED where hidden, or None.
    """
    half = 1 << (numerics.LOGIT_BITS - 1)
    product = q @ k.transpose(-1, -2)
    exact = requantize(product.detach().round(), *logits, -half, half - 1)
    level = straight((product * factor).clamp(-half, half - 1), exact)
    mask = None
    if bias is not None:
        mask = bias != numerics.MASKED
        shown = torch.where(mask, bias, 0).to(level.dtype)
        level = torch.where(mask, (level + shown).clamp(-32768, 32767), float(-(1 << 20)))
    visible = level.detach()
    d = (visible.amax(-1, keepdim=True) - visible).clamp(max=255).long()
    e = exp[d] if mask is None else torch.where(mask, exp[d], exp[255])
    total = e.sum(-1)
    m, n = _row_scale(total.long(), m2, n2)
    shares = torch.softmax(level * numerics.EXP_STEP, -1)
    shares = straight(shares, e / total.clamp(min=1).unsqueeze(-1))
    exact_type = torch.float32 if 255 * 128 * k.shape[-2] < 1 << 24 else torch.float64
    sums = (e.to(exact_type) @ v.detach().to(exact_type)).round()
    m, n = m.unsqueeze(-1), n.unsqueeze(-1)
    return straight(((shares @ v) * ratio).clamp(lo, hi), requantize(sums, m, n, torch.exp2(n - 1), lo, hi))


def _row_scale(total: torch.Tensor, m2: torch.Tensor, n2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """numerics.softmax_row_scale: m and n as float64."""
    safe = total.clamp(min=1)
    e = torch.frexp(safe.double())[1].long() - 1
    index = torch.where(e >= 8, safe >> (e - 8).clamp(min=0), safe << (8 - e).clamp(min=0)) & 255
    recip = torch.as_tensor(numerics.recip_table(), device=total.device)
    p = m2.long() * recip[index]
    h = (p >= 1 << 31).long()
    m = ((p + (torch.ones_like(h) << (14 + h))) >> (15 + h)).clamp(max=65535)
    n = n2.long() + e + 1 - h
    return torch.where(total == 0, 0, m).double(), torch.where(total == 0, 1, n).double()
