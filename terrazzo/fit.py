"""The fastest accelerator for a model on a board, at an accuracy: `terrazzo fit`."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import api, networks
from .arch.errors import UserError
from .arch.files import write_bytes, write_text
from .arch.graph import Graph
from .arch.schemes import Scheme
from .boards import Board
from .boards.mixtures import Mixture, RowBlock
from .boards.search import Budget, Design, Search, Version, search
from .quant import data, quantizer
from .quant.source import Source
from .sim import reference

__all__ = ["Fitted", "bits", "fit", "plot", "save"]

NOMINAL_LANES = 64
"""Rows of the block, about, in which a mixture's accuracy is measured before the search."""
_BATCH = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What `fit` found."""

    search: Search
    board: Board
    budget: Budget
    clock_mhz: float
    accuracy: dict[str, float]
    """Top-1 in per cent of each version that was measured, here or in docs/results.md, and of the chosen design under "design"."""

    def rows(self) -> list[dict]:
        """The Pareto front, fastest first; cells break at spaces."""
        return [self._row(design) for design in self.search.front]

    def _row(self, design: Design) -> dict:
        a, has = design.accelerator, dataclasses.asdict(self.board.budget)
        need, top1 = dataclasses.asdict(design.need), design.version.accuracy
        return {
            "lanes": " + ".join(_count(a, scheme) for scheme in a.lanes.by_scheme),
            "widths": f"{a.columns} columns, depth {a.depth}, drain {a.drain}, vector {a.vector}",
            "rows": networks.named(design.rows.mixture).replace(",", ", "),
            **({} if top1 is None else {"top-1 %": f"{top1:.2f}"}),
            "cycles": design.cycles,
            "FPS": f"{self._frames(design):.1f}",
            "used": f"{design.utilization:.0%}",
            "DRAM MB/s": round(self._rate(design)),
            ", ".join(name.upper() for name in has) + " %": ", ".join(
                f"{100 * need[name] / has[name]:.0f}" for name in has
            ),
        }

    def _frames(self, design: Design) -> float:
        """Per second."""
        return self.clock_mhz * 1e6 / design.cycles

    def _rate(self, design: Design) -> float:
        """MB/s from and to DRAM, on average over a frame."""
        return design.moved_bytes / design.cycles * self.clock_mhz

    def to_json(self) -> dict:
        """Everything, as plain values."""
        return {
            "board": self.board.name,
            "clock_mhz": self.clock_mhz,
            "front": [self._plain(design) for design in self.search.front],
            "judged": len(self.search.designs),
            "gap": self.search.gap,
            "accuracy": self.accuracy,
            "accelerator": self.search.best.accelerator.to_dict(),
        }

    def _plain(self, design: Design) -> dict:
        """A design as plain values."""
        return {
            "version": design.version.name,
            "top1": design.version.accuracy,
            "rows": networks.named(design.rows.mixture),
            "rows_apart": design.rows.apart,
            "cycles": design.cycles,
            "frames_per_second": round(self._frames(design), 1),
            "utilization": round(design.utilization, 4),
            "dram_mb_per_second": round(self._rate(design)),
            "need": dataclasses.asdict(design.need),
            "accelerator": design.accelerator.to_dict(),
        }


def _count(accelerator, scheme: Scheme) -> str:
    """Lanes of a scheme; in brackets those of its second kind, Fixed-4 ones that take keys and values, and whether these take digits."""
    lanes = accelerator.lanes
    notes = [f"{lanes.fixed8_luts} in LUTs"] if scheme == Scheme.FIXED8 and lanes.fixed8_luts else []
    if scheme == Scheme.FIXED4:
        notes += [f"{lanes.fixed4_triples} three in a DSP"] if lanes.fixed4_triples else []
        notes += [f"{lanes.fixed4_quads} four in a DSP"] if lanes.fixed4_quads else []
        notes += [f"{lanes.fixed4_dynamic} dynamic"] if lanes.fixed4_dynamic else []
        notes += ["digits"] if lanes.fixed4_digits else []
    return f"{lanes.by_scheme[scheme]} {scheme.name.lower()}" + (f" ({', '.join(notes)})" if notes else "")


def bits(text: str) -> int | dict[str, int]:
    """Bits of activations: "8", or by class (`quant.bits`) as "other=4,e=4". Raises UserError."""
    if text.isdecimal():
        return int(text)
    found = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if not value.isdecimal():
            raise UserError(
                f"activation_bits must be a number or class=bits with commas, not {text!r}; for example 8, or other=4,e=4"
            )
        found[name] = int(value)
    return found


def fit(
    board: str,
    model: Graph | Source | str,
    mixtures: Sequence[Mixture] | None = None,
    *,
    budget: Budget | None = None,
    requests: Iterable[str] = (),
    clock_mhz: float | None = None,
    evaluations: int = 48,
    activation_bits: int | Mapping[str, int] = 8,
    calibration: np.ndarray | data.Images | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    min_accuracy: float | None = None,
    thorough: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Search the fastest accelerator for `model` on `board`.

    `mixtures` of rows compete (default: Fixed-8 alone); lanes are at least as many Fixed-8 as rows. A Graph, or the name of one of
    `networks.NETWORKS`, tells shapes alone; a Source is quantized on the `calibration` images. With `min_accuracy` (per
    cent) the versions of a named network are those that docs/results.md has at this accuracy, and each mixture of a Source
    is measured on the images and labels of `test` first, the found accelerator's rows last: those below it are
    left out. `thorough` is that of `boards.search`. Raises UserError, and BoardError where nothing fits.
    """
    place = api.board_named(board)
    clock = place.clock_mhz if clock_mhz is None else clock_mhz
    if not 0 < clock <= place.clock_mhz:
        raise UserError(f"clock must be above 0 and at most {place.clock_mhz:g} MHz on {board}, not {clock:g}; "
                        f"the nearest is {place.clock_mhz:g}")  # fmt: skip
    fixed = api.parse_requests(requests)
    if "lanes" in fixed:
        raise UserError(
            "lanes are what is searched: request a ratio of rows by --mix, for example fixed8=1,fixed4=2"
        )
    chosen = list(mixtures or [{Scheme.FIXED8: 1}])
    measure = None
    if isinstance(model, str):
        versions = _named(model, mixtures, chosen, activation_bits, min_accuracy)
    elif isinstance(model, Graph):
        if min_accuracy is not None:
            raise UserError(
                f"min_accuracy must come with --model and labelled images, or a name of {', '.join(networks.NETWORKS)}; "
                "a graph file has neither weights to quantize nor labels"
            )
        versions = [Version(name=networks.named(parts), graph=model, mixture=parts) for parts in chosen]
    else:
        if min_accuracy is not None and test is None:
            raise UserError(
                "min_accuracy must come with labelled images to measure it on; name them with --test"
            )
        measure = _Measured(model, calibration, activation_bits, test, progress)
        versions = measure.versions(chosen, min_accuracy)
    accuracy = {one.name: one.accuracy for one in versions if one.accuracy is not None}
    while versions:
        found = search(
            versions,
            place,
            budget=budget,
            fixed=fixed,
            evaluations=evaluations,
            thorough=thorough,
            progress=progress,
        )
        fitted = Fitted(
            search=found, board=place, budget=budget or Budget(), clock_mhz=clock, accuracy=accuracy
        )
        if min_accuracy is None or measure is None:
            return fitted
        best = found.best
        accuracy["design"] = measure.top1(measure.quantized(best.rows))
        if accuracy["design"] >= min_accuracy:
            return fitted
        versions = [one for one in versions if one.name != best.version.name]
    raise UserError(_too_inaccurate(min_accuracy, accuracy))


def _named(
    name: str,
    mixtures: Sequence[Mixture] | None,
    chosen: Sequence[Mixture],
    activation_bits: int | Mapping[str, int],
    min_accuracy: float | None,
) -> list[Version]:
    """Versions of a named network."""
    if name not in networks.NETWORKS:
        raise UserError(f"model must be one of {', '.join(networks.NETWORKS)}, not {name!r}")
    if min_accuracy is not None:
        return networks.measured(name, min_accuracy, mixtures)
    graph = networks.NETWORKS[name].graph(activation_bits)
    return [Version(name=networks.named(parts), graph=graph, mixture=parts) for parts in chosen]


def _too_inaccurate(min_accuracy: float, accuracy: Mapping[str, float]) -> str:
    measured = ", ".join(f"{name} has {top1:.2f}" for name, top1 in accuracy.items())
    return (
        f"top-1 must be at least {min_accuracy:g} %, but {measured}: add a mixture with more fixed8 rows, "
        f"or ask for at most {max(accuracy.values()):.2f}"
    )


class _Measured:
    """A model that is quantized, and measured on labelled images."""

    def __init__(
        self,
        model: Source,
        calibration: np.ndarray | data.Images | None,
        activation_bits: int | Mapping[str, int],
        test: tuple[np.ndarray, np.ndarray] | None,
        progress: Callable[[str], None],
    ):
        self.model, self.calibration, self.bits = model, calibration, activation_bits
        self.test, self.progress = test, progress
        self.imported = api.imported_graph(model)

    def quantized(self, rows: RowBlock) -> Graph:
        """The integer graph with these rows."""
        self.progress(f"quantizing, {networks.named(rows.mixture)}")
        graph, _ = quantizer.quantize(
            self.imported,
            self.calibration,
            self.model.preprocessing,
            mixture=dict(rows.mixture),
            drain=rows.apart,
            activation_bits=self.bits,
            name=self.model.name,
        )
        return graph

    def top1(self, graph: Graph) -> float:
        """Per cent of the images whose greatest output is their label's."""
        images, labels = self.test
        right = 0
        for start in range(0, len(images), _BATCH):
            codes = reference.quantize_batch(graph, images[start : start + _BATCH])
            answers = reference.run(graph, codes).reshape(len(codes), -1).argmax(axis=1)
            right += int((answers == labels[start : start + _BATCH]).sum())
        return 100 * right / len(images)

    def versions(self, mixtures: Sequence[Mixture], min_accuracy: float | None) -> list[Version]:
        """Those of the mixtures that reach the accuracy. Raises UserError where none does."""
        found = []
        graph = self.quantized(_block({Scheme.FIXED8: 1}))
        for parts in mixtures:
            measured = (
                graph
                if set(parts) == {Scheme.FIXED8} or min_accuracy is None
                else self.quantized(_block(parts))
            )
            top1 = None if min_accuracy is None else self.top1(measured)
            found.append(Version(name=networks.named(parts), graph=graph, mixture=parts, accuracy=top1))
        left = [one for one in found if min_accuracy is None or one.accuracy >= min_accuracy]
        if not left:
            raise UserError(_too_inaccurate(min_accuracy, {one.name: one.accuracy for one in found}))
        return left


def _block(parts: Mixture) -> RowBlock:
    """A block of about NOMINAL_LANES rows in this ratio."""
    scale = max(1, NOMINAL_LANES // sum(parts.values()))
    return RowBlock(mixture={scheme: count * scale for scheme, count in parts.items()}, apart=1)


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
        axis.axvline(100 * getattr(fitted.budget, name), color="0.4", linestyle=":", label="budget")
        axis.set_xlim(0, 100)
        axis.set_xlabel(f"{name.upper()}, % of {fitted.board.name}")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"frames per second at {fitted.clock_mhz:g} MHz")
    axes[0].set_ylim(bottom=0)
    axes[0].legend(loc="upper left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    pyplot.close(figure)
    return write_bytes(path, buffer.getvalue())


def save(fitted: Fitted, path: str | Path) -> Path:
    """The best accelerator, as the verbs' --accelerator reads it."""
    return write_text(path, json.dumps(fitted.search.best.accelerator.to_dict(), indent=2) + "\n")
