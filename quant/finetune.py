"""Quantization-aware training: an integer graph learns to answer like the float model that it was made from.

Labels are not needed: the loss is the divergence from the float model's answers (distillation). Everything random
follows from the seed, the step and the place in the batch, so that a run that was interrupted continues as if nothing
had happened, and several processes see the images that one would see.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from ..arch.errors import UserError
from ..arch.files import FileError, write_bytes
from ..arch.graph import Graph
from . import parallel
from .data import Images, open_images
from .floatgraph import FloatGraph
from .trainable import Trainable

__all__ = ["Finetuned", "Settings", "Step", "finetune"]

Step = Callable[[int, int, float], None]
"""Called after every step with the steps done, all steps and the loss."""
_KIND = "terrazzo finetune 1"
_WARMUP = 0.05
"""Share of the steps in which the rate rises."""
_BETAS = (0.9, 0.99)
_EVERY = 100
"""Steps between two checkpoints."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train."""

    epochs: int = 10
    batch: int = 64
    """Images of one step, of all processes together."""
    rate: float = 2e-3
    """Largest change of a parameter in one step: of a weight in units of its row's size, of a step as a factor."""
    temperature: float = 2.0
    """Divides the logits of both models."""
    flip: bool = False
    """Whether half of the images are mirrored."""
    shift: int = 0
    """Pixels by which images are moved at most, up or down and sideways; what is missing is reflected."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("shift", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("rate", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive, not {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Finetuned:
    """What `finetune` made."""

    graph: Graph
    losses: list[float]
    """Of every epoch, the mean."""


def finetune(
    graph: Graph | None,
    teacher: FloatGraph,
    images: Images | np.ndarray | object,
    settings: Settings,
    *,
    device: str | None = None,
    checkpoint: str | Path | None = None,
    every: int = _EVERY,
    stop: int | None = None,
    name: str | None = None,
    step: Step | None = None,
) -> Finetuned:
    """Train `graph` on raw images to answer like `teacher`.

    The file `checkpoint` is written whole every `every` steps, by process 0, and continued where it exists. `stop` ends
    after so many steps of the schedule. Processes that `parallel.joined` has brought together train one model, and the graph of
    process 0 counts (others may give None); `step` is called in process 0.
    Raises UserError for settings, images and checkpoints that do not fit, and where training diverges.
    """
    place = parallel.pick_device(device)
    graph = parallel.shared(graph, place)
    classes, answers = graph.tensor(graph.output).shape, teacher.nodes[-1].shape
    if graph.tensor(graph.input).shape != tuple(teacher.input_shape) or math.prod(classes) != math.prod(
        answers
    ):
        raise UserError(
            f"graph {graph.name!r} must have the input {tuple(teacher.input_shape)} and output {tuple(answers)} of model "
            f"{teacher.name}, not {graph.tensor(graph.input).shape} and {classes}; give the graph of this model"
        )
    images = open_images(images, graph.tensor(graph.input).shape, raw_max=graph.preprocessing.raw_max)
    if settings.batch > len(images) or settings.batch % parallel.world():
        raise UserError(
            f"batch must be a multiple of the {parallel.world()} processes and at most the {len(images)} images, "
            f"not {settings.batch}"
        )
    run = _Run(graph, teacher, images, settings, place)
    if checkpoint is not None:
        run.restore(Path(checkpoint))
    last = run.total if stop is None else min(stop, run.total)
    while run.done < last:
        loss = run.step()
        if checkpoint is not None and parallel.rank() == 0 and (run.done % every == 0 or run.done == last):
            run.save(Path(checkpoint))
        if step is not None and parallel.rank() == 0:
            step(run.done, run.total, loss)
    parallel.barrier()
    return Finetuned(run.model.result(name), run.epoch_losses())


class _Run:
    """The state of training."""

    def __init__(self, graph: Graph, teacher: FloatGraph, images: Images, settings: Settings, device):
        self.graph, self.images, self.settings, self.device = graph, images, settings, device
        self.teacher = dataclasses.replace(
            teacher,
            nodes=[
                dataclasses.replace(
                    node, params={key: value.to(device) for key, value in node.params.items()}
                )
                for node in teacher.nodes
            ],
        )
        self.model = Trainable(graph).to(device)
        self.parallel = DistributedDataParallel(self.model) if parallel.world() > 1 else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.rate, betas=_BETAS)
        self.per_epoch = len(images) // settings.batch
        self.total, self.done = self.per_epoch * settings.epochs, 0
        self.losses: list[float] = []
        preprocessing = graph.preprocessing
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float64, device=device)
            for v in (preprocessing.mean, preprocessing.std)
        )

    def step(self) -> float:
        """One step; returns its loss (of this process's images)."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * self._schedule()
        real = (self._batch() * self.graph.preprocessing.scale - self.mean) / self.std
        wanted = self.teacher.run(real.float()).flatten(1)
        found = self.parallel(self._codes(real)).flatten(1)
        heat = self.settings.temperature
        wanted, found = F.log_softmax(wanted / heat, 1), F.log_softmax(found / heat, 1)
        loss = F.kl_div(found, wanted, log_target=True, reduction="batchmean") * heat**2
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"loss must stay finite, but is {value} at step {self.done}; lower the rate")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.model.contain()
        self.done += 1
        self.losses.append(value)
        return value

    def _schedule(self) -> float:
        """Factor of the rate: a rise, then half a cosine."""
        warm = max(_WARMUP * self.total, 1)
        return min((self.done + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * self.done / self.total))

    def _batch(self) -> torch.Tensor:
        """This process's raw images of the present step, float64 (N, H, W, C)."""
        settings, (epoch, turn) = self.settings, divmod(self.done, self.per_epoch)
        order = _generator(settings.seed, epoch, 0)
        chosen = torch.randperm(len(self.images), generator=order)[turn * settings.batch :][: settings.batch]
        luck = _generator(settings.seed, epoch, turn + 1)
        mirrored = torch.rand(settings.batch, generator=luck) < 0.5
        moved = torch.randint(-settings.shift, settings.shift + 1, (settings.batch, 2), generator=luck)
        size = settings.batch // parallel.world()
        mine = slice(parallel.rank() * size, (parallel.rank() + 1) * size)
        batch = []
        for index, mirror, (down, right) in zip(
            chosen[mine].tolist(), mirrored[mine].tolist(), moved[mine].tolist(), strict=True
        ):
            image = self.images[index]
            image = image[:, ::-1] if settings.flip and mirror else image
            batch.append(_moved(image, down, right, settings.shift))
        return torch.from_numpy(np.stack(batch)).to(self.device).double()

    def _codes(self, real: torch.Tensor) -> torch.Tensor:
        """numerics.quantize_input."""
        tensor = self.graph.tensor(self.graph.input)
        half = 1 << (tensor.bits - 1)
        return (torch.round(real / tensor.scale) + tensor.zero_point).clamp(-half, half - 1).float()

    def epoch_losses(self) -> list[float]:
        """Mean loss of every epoch that has begun."""
        starts = range(0, len(self.losses), self.per_epoch)
        return [float(np.mean(self.losses[i : i + self.per_epoch])) for i in starts]

    def _identity(self) -> dict:
        digest = hashlib.sha256()
        for key in sorted(self.graph.constants):
            digest.update(key.encode() + np.ascontiguousarray(self.graph.constants[key]).tobytes())
        return {
            "graph": digest.hexdigest(),
            "images": len(self.images),
            **dataclasses.asdict(self.settings),
        }

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {
            "kind": _KIND,
            "identity": json.dumps(self._identity()),
            "done": self.done,
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint, if there is one. Raises FileError where it is not of this run."""
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            kind = state["kind"]
        except Exception as error:  # torch.load raises a dozen unrelated types on foreign files
            reason = (str(error) or type(error).__name__).splitlines()[0][:120]
            raise FileError(
                f"{path}: must be a checkpoint of terrazzo finetune, but {reason}; remove it to start again"
            ) from None
        if kind != _KIND:
            raise FileError(
                f"{path}: must be a checkpoint of {_KIND!r}, not {kind!r}; remove it to start again"
            )
        ours, theirs = self._identity(), json.loads(state["identity"])
        if different := [f"{key} {theirs.get(key)}" for key in ours if ours[key] != theirs.get(key)]:
            raise FileError(
                f"{path}: must be of this run, but was made with {', '.join(different)}; "
                "repeat those settings, or remove it to start again"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done, self.losses = int(state["done"]), state["losses"].tolist()


def _generator(*seeds: int) -> torch.Generator:
    seed = int.from_bytes(hashlib.sha256(repr(seeds).encode()).digest()[:7], "little")
    return torch.Generator().manual_seed(seed)


def _moved(image: np.ndarray, down: int, right: int, most: int) -> np.ndarray:
    """`image` (H, W, C) moved by at most `most` pixels; what is missing is reflected."""
    if most == 0:
        return image
    padded = np.pad(image, ((most, most), (most, most), (0, 0)), mode="reflect")
    height, width, _ = image.shape
    return padded[most - down :][:height, most - right :][:, :width]
