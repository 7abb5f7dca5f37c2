"""The fastest accelerator for a model on a board, at an accuracy: `terrazzo fit`."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from . import api
from .arch.errors import UserError
from .arch.files import write_bytes, write_text
from .arch.graph import Graph
from .arch.schemes import Scheme
from .boards import Board
from .boards.search import Budget, Design, Mixture, Search, search
from .quant import data, quantizer, rows
from .quant.source import Source
from .sim import reference

__all__ = ["Fitted", "fit", "mixture", "plot", "save"]

NOMINAL_LANES = 64
"""Lanes of the block in which a mixture's accuracy is measured before the search."""
_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What `fit` found."""

    search: Search
    board: Board
    clock_mhz: float
    accuracy: dict[str, float]
    """Top-1 in per cent of each mixture that was measured, and of the chosen design under "design"."""

    def rows(self) -> list[dict]:
        """The Pareto front, fastest first."""
        return [self._row(design) for design in self.search.front]

    def _row(self, design: Design) -> dict:
        a, has = design.accelerator, dataclasses.asdict(self.board.budget)
        need = dataclasses.asdict(design.need)
        return {
            "lanes": " ".join(f"{scheme.name} {count}" for scheme, count in a.lanes.by_scheme.items()),
            "columns": a.columns,
            "depth": a.depth,
            "drain": a.drain,
            "vector": a.vector,
            "cycles": design.cycles,
            "FPS": round(self.clock_mhz * 1e6 / design.cycles, 1),
            "used": f"{design.utilization:.1%}",
            "DRAM MB/s": round(self._rate(design)),
            **{f"{name.upper()} %": round(100 * need[name] / has[name]) for name in has},
        }

    def _rate(self, design: Design) -> float:
        """MB/s from and to DRAM, on average over a frame."""
        return design.moved_bytes / design.cycles * self.clock_mhz

    def to_json(self) -> dict:
        """Everything, as plain values."""
        return {
            "board": self.board.name,
            "clock_mhz": self.clock_mhz,
            "front": [
                row | {"need": dataclasses.asdict(design.need), "accelerator": design.accelerator.to_dict()}
                for row, design in zip(self.rows(), self.search.front, strict=True)
            ],
            "judged": len(self.search.designs),
            "gap": self.search.gap,
            "accuracy": self.accuracy,
            "accelerator": self.search.best.accelerator.to_dict(),
        }


def mixture(text: str) -> Mixture:
    """Lanes of each scheme from "fixed8=1,fixed4=19". Raises UserError."""
    found: dict[Scheme, int] = {}
    names = {scheme.name.lower(): scheme for scheme in Scheme}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in names or not value.isdecimal() or int(value) == 0:
            raise UserError(
                f"mix must be scheme=parts with commas, schemes of {', '.join(names)} and parts from 1 on, not {text!r}; "
                "for example fixed8=1,fixed4=3"
            )
        found[names[name]] = int(value)
    if Scheme.FIXED8 not in found:
        raise UserError(
            f"mix must have fixed8 lanes, which run attention and incomplete blocks, not {text!r}; the nearest is "
            f"fixed8=1,{text}"
        )
    return dict(sorted(found.items()))


def fit(
    board: str,
    model: Graph | Source,
    mixtures: Sequence[Mixture] = ({Scheme.FIXED8: 1},),
    *,
    budget: Budget | None = None,
    requests: Iterable[str] = (),
    clock_mhz: float | None = None,
    evaluations: int = 48,
    calibration: np.ndarray | data.Images | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    min_accuracy: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Search the fastest accelerator for `model` on `board`.

    A Graph tells shapes alone; a model is quantized on the `calibration` images. With `min_accuracy` (per cent, needs a
    model) each mixture is measured on the images and labels of `test` first, and the found accelerator's
    rows last: mixtures below it are left out. Raises UserError, and BoardError where nothing fits.
    """
    place = api.board_named(board)
    clock = clock_mhz or place.clock_mhz
    if not 0 < clock <= place.clock_mhz:
        raise UserError(f"clock must be above 0 and at most {place.clock_mhz:g} MHz on {board}, not {clock:g}; "
                        f"the nearest is {place.clock_mhz:g}")  # fmt: skip
    if min_accuracy is not None and (isinstance(model, Graph) or test is None):
        raise UserError("min_accuracy must come with a model and labelled images to measure it on")
    fixed = api.parse_requests(requests)
    if "lanes" in fixed:
        raise UserError("lanes are what is searched: request their ratio by a mix")
    accuracy: dict[str, float] = {}
    imported = None if isinstance(model, Graph) else api.imported_graph(model)

    def quantized(lanes: Mixture, drain: int) -> Graph:
        progress(f"quantizing, {_named(lanes)}")
        graph, _ = quantizer.quantize(
            imported,
            calibration,
            model.preprocessing,
            mixture=dict(lanes),
            drain=drain,
            name=model.name,
            execute=lambda graph, codes: reference.run(graph, codes, keep=True),
        )
        return graph

    graph = model if isinstance(model, Graph) else quantized({Scheme.FIXED8: NOMINAL_LANES}, 1)
    left = list(mixtures)
    if min_accuracy is not None:
        for parts in mixtures:
            measured = graph if set(parts) == {Scheme.FIXED8} else quantized(_block(parts), 1)
            accuracy[_named(parts)] = _top1(measured, *test)
        left = [parts for parts in mixtures if accuracy[_named(parts)] >= min_accuracy]
    while left:
        found = search(
            graph,
            place,
            left,
            budget=budget,
            fixed=fixed,
            evaluations=evaluations,
            progress=progress,
        )
        fitted = Fitted(search=found, board=place, clock_mhz=clock, accuracy=accuracy)
        if min_accuracy is None:
            return fitted
        best = found.best
        design = quantized(best.accelerator.lanes.by_scheme, best.accelerator.drain)
        accuracy["design"] = _top1(design, *test)
        if accuracy["design"] >= min_accuracy:
            return fitted
        left = [parts for parts in left if parts != best.mixture]
    measured = ", ".join(f"{name} has {top1:.2f}" for name, top1 in accuracy.items())
    raise UserError(
        f"top-1 must be at least {min_accuracy:g} %, but {measured}: add a mixture with more fixed8 lanes, "
        f"or ask for at most {max(accuracy.values()):.2f}"
    )


def _named(parts: Mixture) -> str:
    return ",".join(f"{scheme.name.lower()}={count}" for scheme, count in parts.items())


def _block(parts: Mixture) -> Mixture:
    """Lanes of a block of about NOMINAL_LANES in this ratio."""
    scale = max(1, NOMINAL_LANES // sum(parts.values()))
    block = {scheme: count * scale for scheme, count in parts.items()}
    rows.check_mixture(block, 1)
    return block


def _top1(graph: Graph, images: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of the images whose greatest output is their label's."""
    right = 0
    for start in range(0, len(images), _BATCH):
        codes = reference.quantize_batch(graph, images[start : start + _BATCH])
        answers = reference.run(graph, codes).reshape(len(codes), -1).argmax(axis=1)
        right += int((answers == labels[start : start + _BATCH]).sum())
    return 100 * right / len(images)


def plot(fitted: Fitted, path: str | Path) -> Path:
    """Frames per second against LUTs and DSPs of all designs, the Pareto front joined; PNG or SVG by the name."""
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise UserError(f"plot must be named .png or .svg, not {path.name}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    budget, found = fitted.board.budget, fitted.search
    for axis, name in zip(axes, ("lut", "dsp"), strict=True):

        def points(designs: Sequence[Design], name: str = name) -> tuple[list[float], list[float]]:
            used = [100 * getattr(d.need, name) / getattr(budget, name) for d in designs]
            return used, [fitted.clock_mhz * 1e6 / d.cycles for d in designs]

        axis.scatter(*points(found.designs), color="0.7", label="judged")
        order = sorted(found.front, key=lambda d: getattr(d.need, name))
        best = [d for i, d in enumerate(order) if all(d.cycles < before.cycles for before in order[:i])]
        axis.plot(*points(best), "o-", drawstyle="steps-post", color="tab:blue", label="Pareto front")
        axis.set_xlabel(f"{name.upper()}, % of {fitted.board.name}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"frames per second at {fitted.clock_mhz:g} MHz")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    pyplot.close(figure)
    return write_bytes(path, buffer.getvalue())


def save(fitted: Fitted, path: str | Path) -> Path:
    """The best accelerator, as the verbs' --accelerator reads it."""
    return write_text(path, json.dumps(fitted.search.best.accelerator.to_dict(), indent=2) + "\n")
