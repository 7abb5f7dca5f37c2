"""Networks by name, of random weights, and the ways to quantize them whose accuracy docs/results.md has."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

from .arch.errors import UserError
from .arch.graph import Graph
from .arch.schemes import Scheme
from .boards.mixtures import Mixture
from .boards.search import Version
from .performance import accuracy
from .quant.bits import bits_by_class
from .results import ROWS
from .synthetic import deit, mobilenet_v2, resnet18

__all__ = ["NETWORKS", "Network", "measured", "named"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """A network of published shapes."""

    family: str
    """The model of docs/results.md that stands for it."""
    make: Callable[..., Graph]
    """With random weights, of the bits that `bits` gives."""
    attends: bool = False
    """Whether there is attention, whose queries, keys and values have bits of their own."""

    def graph(self, activation_bits: int | Mapping[str, int]) -> Graph:
        """The network with these bits (`quant.bits`). Raises UserError."""
        bits = bits_by_class(activation_bits)
        if not self.attends:
            return self.make(bits=bits["other"])
        if not bits["q"] == bits["k"] == bits["v"] == bits["e"]:
            raise UserError(
                "activation_bits of a named network must be equal for q, k, v and e, not "
                + ", ".join(f"{name}={bits[name]}" for name in "qkve")
                + f"; the nearest is other={bits['other']},q={bits['e']},k={bits['e']},v={bits['e']},e={bits['e']}"
            )
        return self.make(bits=bits["other"], attended=bits["q"])


NETWORKS = {
    "deit-tiny": Network(family="deit-tiny", make=deit, attends=True),
    "deit-small": Network(family="deit-tiny", make=functools.partial(deit, 384, 12, 6), attends=True),
    "deit-base": Network(family="deit-tiny", make=functools.partial(deit, 768, 12, 12), attends=True),
    "resnet18": Network(family="resnet20", make=resnet18),
    "mobilenet-v2": Network(family="mobilenet-v2", make=mobilenet_v2),
}


def named(mixture: Mixture) -> str:
    """As the command line has it."""
    return ",".join(f"{scheme.name.lower()}={count}" for scheme, count in mixture.items())


def measured(name: str, min_accuracy: float, mixtures: Sequence[Mixture] | None = None) -> list[Version]:
    """The ways to quantize a network's family that docs/results.md has at `min_accuracy` per cent or above, of rows in one
    of the `mixtures` if these are given, and with the functions of the float model. Raises UserError where there is none."""
    network = NETWORKS[name]
    found = {}
    for key, row in ROWS.items():
        wanted = mixtures is None or any(_equal(row.mixture, mixture) for mixture in mixtures)
        if row.model == network.family and row.functions == "exact" and wanted:
            found[key] = _known(key)
    found = {key: top1 for key, top1 in found.items() if top1 is not None}
    if not found:
        asked = " or ".join(named(mixture) for mixture in mixtures or ())
        raise UserError(
            f"mix {asked} must have a row in docs/results.md for {name} ({network.family}), and has none; those that have are "
            + "; ".join(sorted({named(r.mixture) for r in ROWS.values() if r.model == network.family}))
        )
    best = max(found, key=found.get)
    if found[best] < min_accuracy:
        raise UserError(
            f"min_accuracy must be at most {found[best]:g} % for {name}, which row {best} of docs/results.md has, not "
            f"{min_accuracy:g}; ask for {found[best]:g}, or measure a mixture of your own with --test"
        )
    graphs = {}
    for key in found:
        if found[key] >= min_accuracy and str(ROWS[key].bits) not in graphs:
            graphs[str(ROWS[key].bits)] = network.graph(ROWS[key].bits)
    return [
        Version(
            name=key,
            graph=graphs[str(ROWS[key].bits)],
            mixture=ROWS[key].mixture,
            accuracy=top1,
        )
        for key, top1 in found.items()
        if top1 >= min_accuracy
    ]


def _known(key: str) -> float | None:
    """A row's accuracy, if it has been measured."""
    try:
        return accuracy(key)["integer_top1"]
    except UserError:
        return None


def _equal(one: Mapping[Scheme, int], other: Mapping[Scheme, int]) -> bool:
    """Whether two mixtures are of one ratio."""
    reduced = ({s: c // math.gcd(*mixture.values()) for s, c in mixture.items()} for mixture in (one, other))
    return next(reduced) == next(reduced)
