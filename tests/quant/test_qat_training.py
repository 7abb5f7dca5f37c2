"""Training improves coarse graphs, goes on where it stopped, and is the same on two processes."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from terrazzo.arch.errors import UserError
from terrazzo.arch.files import FileError
from terrazzo.arch.graph import Graph, Preprocessing
from terrazzo.arch.schemes import Scheme
from terrazzo.quant import data, frontend
from terrazzo.quant.finetune import Settings, finetune
from terrazzo.quant.quantizer import quantize
from terrazzo.quant.trainable import Trainable
from terrazzo.sim import reference

ROOT = Path(__file__).parents[2]
SHORT = Settings(epochs=2, batch=16, shift=1, flip=True)


@pytest.fixture(scope="module")
def coarse():
    """(float graph, integer graph with steps far off) of the digits CNN."""
    from terrazzo.examples.digits import models

    module = models.build("cnn").eval()
    module.load_state_dict(load_file(ROOT / "examples" / "digits" / "cnn.safetensors"))
    preprocessing = Preprocessing(
        scale=models.SCALE, mean=(models.MEAN,), std=(models.STD,), raw_max=models.RAW_MAX
    )
    teacher = frontend.import_module(module, torch.zeros(1, 1, 8, 8), "cnn")
    mixture = {Scheme.FIXED8: 1, Scheme.FIXED4: 4, Scheme.POT4: 3}
    graph, _ = quantize(teacher, data.digits("train")[0][:64], preprocessing, mixture=mixture)
    model, generator = Trainable(graph), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for gains in model.gains.values():
            gains += 0.9 * torch.randn(gains.shape, generator=generator, dtype=torch.float64)
    return teacher, model.result()


@pytest.fixture(scope="module")
def images():
    return data.digits("train")[0]


def top1(graph):
    images, labels = data.digits("test")
    output = reference.run(graph, reference.quantize_batch(graph, images))
    return float((output.reshape(len(images), -1).argmax(axis=1) == labels).mean())


def same(first: Graph, second: Graph) -> bool:
    return (first.tensors, first.operators) == (second.tensors, second.operators) and all(
        np.array_equal(first.constants[name], second.constants[name]) for name in first.constants
    )


def test_training_repairs_a_bad_quantization(coarse, images):
    teacher, graph = coarse
    steps = []
    found = finetune(
        graph, teacher, images, Settings(epochs=4, batch=32, rate=0.01), step=lambda *s: steps.append(s)
    )
    before, after = top1(graph), top1(found.graph)
    assert before < 0.9 and after > 0.97, (before, after)
    assert found.losses[-1] < 0.3 * found.losses[0] and len(found.losses) == 4
    total = 4 * (len(images) // 32)
    assert [s[:2] for s in steps] == [(i + 1, total) for i in range(total)]
    for name, schemes in graph.constants.items():
        if name.endswith("/scheme"):
            np.testing.assert_array_equal(found.graph.constants[name], schemes)


def test_interrupted_training_ends_with_the_same_graph(coarse, images, tmp_path):
    teacher, graph = coarse
    whole = finetune(graph, teacher, images[:100], SHORT)
    half = tmp_path / "half.pt"
    stopped = finetune(graph, teacher, images[:100], SHORT, checkpoint=half, stop=5)
    assert not same(stopped.graph, whole.graph)
    again = finetune(graph, teacher, images[:100], SHORT, checkpoint=half)
    assert same(again.graph, whole.graph) and again.losses == whole.losses
    finished = finetune(graph, teacher, images[:100], SHORT, checkpoint=half)
    assert same(finished.graph, whole.graph)


def test_checkpoints_that_do_not_fit(coarse, images, tmp_path):
    teacher, graph = coarse
    path = tmp_path / "run.pt"
    finetune(graph, teacher, images[:32], SHORT, checkpoint=path, stop=1)
    whole = path.read_bytes()
    with pytest.raises(FileError, match="batch 16"):
        finetune(graph, teacher, images[:32], dataclasses.replace(SHORT, batch=8), checkpoint=path)
    with pytest.raises(FileError, match="graph"):
        other = Trainable(graph)
        with torch.no_grad():
            next(iter(other.gains.values())).add_(0.1)
        finetune(other.result(), teacher, images[:32], SHORT, checkpoint=path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="remove it"):
        finetune(graph, teacher, images[:32], SHORT, checkpoint=path)
    assert path.read_bytes() == whole[: len(whole) // 2] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "change", [{"epochs": 0}, {"rate": 0.0}, {"rate": float("nan")}, {"temperature": -1.0}, {"shift": -1}]
)
def test_settings_out_of_range(change):
    with pytest.raises(UserError, match=next(iter(change))):
        Settings(**change)


def test_batch_larger_than_the_images(coarse, images):
    with pytest.raises(UserError, match="batch must"):
        finetune(coarse[1], coarse[0], images[:8], SHORT)


def test_divergence_is_one_line(coarse, images):
    with pytest.raises(UserError, match="lower the rate"):
        finetune(coarse[1], coarse[0], images[:64], Settings(epochs=4, batch=16, rate=1e6))


_WORKER = """
import sys, torch
from terrazzo.arch.graph import Graph
from terrazzo.quant import data, finetune, floatgraph, frontend, parallel
from terrazzo.examples.digits import models
from safetensors.torch import load_file
start, weights, out = sys.argv[1:]
torch.set_num_threads(1)
module = models.build("cnn").eval()
module.load_state_dict(load_file(weights))
teacher = frontend.import_module(module, torch.zeros(1, 1, 8, 8), "cnn")
settings = finetune.Settings(epochs=1, batch=16, shift=1, flip=True)
device = parallel.pick_device("cpu")
with parallel.joined(device):
    graph = Graph.load(start) if parallel.rank() == 0 else None
    found = finetune.finetune(graph, teacher, data.digits("train")[0][:48], settings, device="cpu")
    found.graph.save(f"{out}.{parallel.rank()}")
"""


def test_two_processes_train_what_one_trains(coarse, images, tmp_path):
    teacher, graph = coarse
    (tmp_path / "worker.py").write_text(_WORKER)
    start = graph.save(tmp_path / "start")
    weights = ROOT / "examples" / "digits" / "cnn.safetensors"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(tmp_path / "worker.py"), str(start), str(weights), str(tmp_path / "out")]
    subprocess.run(command, check=True, timeout=300, capture_output=True)
    first, second = (Graph.load(tmp_path / f"out.{i}") for i in range(2))
    assert same(first, second) and not same(first, graph)
    alone = finetune(graph, teacher, images[:48], Settings(epochs=1, batch=16, shift=1, flip=True)).graph
    weights = [n for n in first.constants if n.endswith("/weight")]
    differing = np.mean([np.mean(alone.constants[n] != first.constants[n]) for n in weights])
    assert differing < 0.01
    for ours, theirs in zip(alone.tensors, first.tensors, strict=True):
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-3)
