"""How far every architecture of `architectures` comes: `python -m terrazzo.examples.table --out build/architectures`.

Random weights and random images: the table shows what is supported and that integers follow the float model, not
accuracy. It writes OUT.json and OUT.md, and with --docs the table into a document that has a place for it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from ..arch.accelerator import Accelerator
from ..arch.errors import UserError
from ..arch.files import write_text
from ..arch.graph import Preprocessing
from ..arch.schemes import Scheme
from ..boards import BOARDS, fit
from ..compiler import compile
from ..quant.calibrate import preprocess
from ..quant.frontend import UnsupportedModel, import_module
from ..quant.quantizer import quantize
from ..sim import functional, reference
from .architectures import ARCHITECTURES, Architecture

__all__ = ["Row", "images", "main", "markdown", "row"]

BOARD = "zcu102"
CALIBRATION, HELD_OUT = 64, 8
_BEGIN, _END = "<!-- architectures: begin -->", "<!-- architectures: end -->"
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)


@dataclasses.dataclass
class Row:
    """What became of one architecture; fields behind the first failure are None."""

    name: str
    model: str
    size: int
    imported: bool = False
    nodes: int | None = None
    quantized: bool | None = None
    sqnr_db: float | None = None
    """Signal to quantization noise of the outputs against the float graph, on images not calibrated on."""
    variation_db: float | None = None
    """The same with the mean output of the images subtracted from the signal."""
    compiled: bool | None = None
    equal: bool | None = None
    """Whether the functional simulator's outputs are the reference's."""
    reasons: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0


def images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random images (count, size, size, 3), uint8: blocks of 4 x 4 pixels, with noise."""
    random = np.random.default_rng(seed)
    blocks = random.normal(0, 60, (count, size // 4, size // 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
    return np.clip(128 + blocks + random.normal(0, 30, blocks.shape), 0, 255).astype(np.uint8)


def row(name: str, architecture: Architecture, accelerator: Accelerator) -> Row:
    """Take one architecture as far as it goes."""
    result, start = Row(name, architecture.model, architecture.size), time.monotonic()
    try:
        _fill(result, architecture, accelerator)
    except UnsupportedModel as error:
        result.reasons = [f"{finding.op}: {finding.reason}" for finding in error.findings]
    except UserError as error:
        result.reasons = str(error).splitlines()
    result.reasons = list(dict.fromkeys(result.reasons))
    result.seconds = round(time.monotonic() - start, 1)
    return result


def _fill(result: Row, architecture: Architecture, accelerator: Accelerator) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = architecture.build()
    size = architecture.size
    sample = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    real = import_module(module, sample, result.name)
    result.imported, result.nodes, result.quantized = True, len(real.nodes), False
    raw = images(CALIBRATION + HELD_OUT, size)
    mixture = {Scheme.FIXED8: accelerator.lanes.fixed8}
    graph, _ = quantize(
        real, raw[:CALIBRATION], PREPROCESSING, mixture=mixture, drain=accelerator.drain, name=result.name
    )
    result.quantized = True
    held_out = raw[CALIBRATION:]
    wanted = real.run(preprocess(held_out, PREPROCESSING)).double().numpy().reshape(HELD_OUT, -1)
    codes = reference.quantize_batch(graph, held_out)
    integer = reference.run(graph, codes)
    tensor = graph.tensor(graph.output)
    got = (integer.reshape(HELD_OUT, -1).astype(np.float64) - tensor.zero_point) * tensor.scale
    noise = max(((got - wanted) ** 2).sum(), 1e-300)
    result.sqnr_db = round(float(10 * np.log10((wanted**2).sum() / noise)), 1)
    signal = ((wanted - wanted.mean(axis=0)) ** 2).sum()
    result.variation_db = round(float(10 * np.log10(max(signal, 1e-300) / noise)), 1)
    result.compiled = False
    program = compile(graph, accelerator)
    result.compiled, result.equal = True, False
    outputs = functional.run(program, codes[:1])
    result.equal = bool(np.array_equal(outputs.reshape(-1), integer[:1].reshape(-1)))


def markdown(rows: Iterable[Row], accelerator: Accelerator) -> str:
    """The table, and the counts that stand above it."""
    rows = list(rows)
    done = {
        "imported": sum(r.imported for r in rows),
        "quantized": sum(bool(r.quantized) for r in rows),
        "compiled": sum(bool(r.compiled) for r in rows),
        "reference = functional": sum(bool(r.equal) for r in rows),
    }
    counts = ", ".join(f"{count} {stage}" for stage, count in done.items())
    lines = [
        f"{len(rows)} architectures of `transformers`, random weights, compiled for the {BOARD} "
        f"({accelerator.lanes.fixed8} Fixed-8 lanes x {accelerator.columns} columns x depth {accelerator.depth}): {counts}.",
        "",
        "| architecture | model | pixels | imported | quantized, SQNR dB (of the differences between images) | compiled | equal | reasons |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        quantized = _mark(r.quantized) if r.sqnr_db is None else f"{r.sqnr_db:.1f} ({r.variation_db:.1f})"
        reasons = "; ".join(r.reasons[:3]) + (f" and {len(r.reasons) - 3} more" if len(r.reasons) > 3 else "")
        cells = (
            r.name,
            f"`{r.model}`",
            str(r.size),
            _mark(r.imported),
            quantized,
            _mark(r.compiled),
            _mark(r.equal),
            reasons.replace("|", "\\|"),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _known(path: Path) -> dict[str, Row]:
    """The rows of an earlier run by name, so that --only measures some of them again."""
    if not path.is_file():
        return {}
    try:
        return {fields["name"]: Row(**fields) for fields in json.loads(path.read_text())}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: must hold the rows of an earlier run, but {error}; remove it") from None


def _insert(docs: Path, table: str) -> None:
    text = docs.read_text()
    before, found, rest = text.partition(_BEGIN)
    if not found or _END not in rest:
        raise UserError(f"{docs}: must contain the lines {_BEGIN} and {_END}; put them back")
    write_text(docs, f"{before}{_BEGIN}\n{table}{_END}{rest.partition(_END)[2]}")


def _mark(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def main(arguments: list[str] | None = None) -> int:
    """Write the table; the status is 1 where a compiled program disagrees with the reference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/architectures"))
    parser.add_argument("--only", nargs="*", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--docs", type=Path, help="a document with the lines " + f"{_BEGIN} and {_END}")
    options = parser.parse_args(arguments)
    if find_spec("transformers") is None:
        print(
            "transformers must be installed for its architectures; pip install terrazzo[models]",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    accelerator, rows = fit(BOARDS[BOARD], {}), _known(options.out.with_suffix(".json"))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        rows[name] = row(name, ARCHITECTURES[name], accelerator)
        print(f"{name}: {json.dumps(dataclasses.asdict(rows[name]))}", flush=True)
        rows = {known: rows[known] for known in ARCHITECTURES if known in rows}
        listed = json.dumps([dataclasses.asdict(r) for r in rows.values()], indent=2)
        write_text(options.out.with_suffix(".json"), listed)
        write_text(options.out.with_suffix(".md"), markdown(rows.values(), accelerator))
    if options.docs:
        _insert(options.docs, markdown(rows.values(), accelerator))
    return int(any(r.equal is False and r.compiled for r in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
