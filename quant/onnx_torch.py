"""Float ONNX models of torch modules, by torch's own exporter."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from ..arch.errors import UserError

__all__ = ["export"]

_OPSET = 18


def export(module: nn.Module, sample: torch.Tensor, path: Path) -> None:
    """Write a module with its weights, for batches as large as `sample` (N, C, H, W); the input is called "image".

    The file appears whole or not at all. Raises UserError where onnxscript is missing, which the exporter needs.
    """
    if find_spec("onnxscript") is None:
        raise UserError("onnxscript must be installed to export models by torch; pip install terrazzo[onnx]")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.onnx")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (sample,),
            part,
            opset_version=_OPSET,
            input_names=["image"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    part.replace(path)
