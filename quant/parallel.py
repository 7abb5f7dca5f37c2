"""Several processes that train one model, as `torchrun` starts them; a single process where it did not."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from ..arch.errors import UserError
from ..arch.graph import Graph

__all__ = ["barrier", "joined", "pick_device", "rank", "shared", "world"]


def pick_device(name: str | None = None) -> torch.device:
    """The device called `name` ("cpu", "cuda", "cuda:1"); without a name a GPU where there is one, each process its own."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be cpu, cuda or cuda:N, not {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"device {name} must exist, but torch finds no GPU; use cpu")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    elif device.type != "cpu":
        raise UserError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Inside, this process is one of those that torchrun started: gloo on processors, NCCL on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        dist.barrier()


def shared(graph: Graph | None, device: torch.device) -> Graph:
    """The graph of process 0, in all processes."""
    if world() == 1:
        return graph
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph"
        data = graph.save(path).read_bytes() if rank() == 0 else b""
        size = torch.tensor([len(data)], device=device)
        dist.broadcast(size, 0)
        payload = torch.zeros(int(size), dtype=torch.uint8, device=device)
        if rank() == 0:
            payload.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        dist.broadcast(payload, 0)
        path.write_bytes(payload.cpu().numpy().tobytes())
        return Graph.load(path)
