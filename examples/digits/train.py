"""Train a digits model from nothing: `python examples/digits/train.py vit|cnn [output.safetensors]`.

Prints the held-out accuracy and writes the weights next to this file. Seeded; under two minutes on two cores.
"""

import argparse
import copy
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from models import MEAN, SCALE, STD, build
from safetensors.torch import save

from terrazzo.arch.files import write_bytes
from terrazzo.quant.data import digits

EPOCHS = {"vit": 80, "cnn": 50}
LEARNING_RATE = {"vit": 1.5e-3, "cnn": 3e-3}
BATCH = 64
AVERAGE_DECAY = 0.99


def preprocessed(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 1, 8, 8) as the models expect them, and labels."""
    images, labels = digits(split)
    return (torch.from_numpy(images).permute(0, 3, 1, 2) * SCALE - MEAN) / STD, torch.from_numpy(labels)


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Half of the images shifted, rotated and scaled a little; what comes in from outside is background."""
    count = len(images)
    kept = (torch.rand(count) < 0.5).reshape(-1, 1, 1, 1)
    angle = (torch.rand(count) - 0.5) * 0.5
    scale = 1 + (torch.rand(count) - 0.5) * 0.25
    shift = (torch.rand(count, 2) - 0.5) * 0.5
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], 1).reshape(count, 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    background = -MEAN / STD
    return torch.where(
        kept, images, F.grid_sample(images - background, grid, align_corners=False) + background
    )


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (model.eval()(images).argmax(1) == labels).double().mean().item()


def train(name: str) -> torch.nn.Module:
    """The trained model: AdamW, one cosine cycle, label smoothing, and a running average of the weights."""
    torch.manual_seed(0)
    images, labels = preprocessed("train")
    model = build(name)
    average = copy.deepcopy(model)
    steps = EPOCHS[name] * math.ceil(len(images) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE[name], weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE[name], total_steps=steps, pct_start=0.1
    )
    for epoch in range(EPOCHS[name]):
        model.train()
        for chosen in torch.randperm(len(images)).split(BATCH):
            loss = F.cross_entropy(model(augmented(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.lerp_(value, 1 - AVERAGE_DECAY) if mean.is_floating_point() else mean.copy_(value)
        if epoch % 20 == 19:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    return average.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["vit", "cnn"])
    parser.add_argument("output", nargs="?", type=Path, help="default: NAME.safetensors next to this file")
    arguments = parser.parse_args()
    model = train(arguments.name)
    output = arguments.output or Path(__file__).with_name(f"{arguments.name}.safetensors")
    write_bytes(output, save(model.state_dict()))
    print(
        f"{arguments.name}: held-out top-1 {accuracy(model, *preprocessed('test')):.2%}, weights in {output.name}"
    )


if __name__ == "__main__":
    main()
