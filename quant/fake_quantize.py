"""Quantization of an activation as a torch operator: a model that was quantized elsewhere runs and is exported with it."""

from __future__ import annotations

import torch

__all__ = ["BIPOLAR", "ROUNDINGS", "fake_quantize"]

BIPOLAR = "BIPOLAR"
ROUNDINGS = ("ROUND", "FLOOR", "CEIL", BIPOLAR)
"""Half to even, down, up; BIPOLAR is +1 from zero upwards and -1 below it."""


@torch.library.custom_op("terrazzo::fake_quantize", mutates_args=())
def fake_quantize(
    x: torch.Tensor, scale: float, zero_point: int, lo: int, hi: int, rounding: str
) -> torch.Tensor:
    """scale * (clamp(round(x / scale) + zero_point, lo, hi) - zero_point) in float32, with one of ROUNDINGS."""
    if rounding == BIPOLAR:
        return torch.where(x >= 0, scale, -scale).to(x.dtype)
    rounded = {"ROUND": torch.round, "FLOOR": torch.floor, "CEIL": torch.ceil}[rounding](x / scale)
    return (torch.clamp(rounded + zero_point, lo, hi) - zero_point) * scale


@fake_quantize.register_fake
def _(x, scale, zero_point, lo, hi, rounding):
    return torch.empty_like(x)
