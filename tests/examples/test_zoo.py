"""Published weights in the catalogue's models: as accurate in float as their source says."""

import os
from pathlib import Path

import pytest
import torch

from terrazzo.arch.graph import Preprocessing
from terrazzo.examples.zoo import CATALOGUE
from terrazzo.quant import frontend
from terrazzo.quant.data import load_weights, open_images

DATA = os.environ.get("TERRAZZO_DATA")
ACCURACY = {"deit-tiny": 79.2, "mobilenet-v1": 58.6, "mobilenet-v2": 89.8, "resnet20": 91.0, "resnet56": 94.0}
"""Top-1 in per cent on the catalogue's 500 images."""


@pytest.mark.full
@pytest.mark.parametrize("name", CATALOGUE)
def test_published_accuracy(name):
    if not DATA:
        pytest.skip("TERRAZZO_DATA does not name the folder of weights and images")
    entry = CATALOGUE[name]
    module = load_weights(entry.build(), Path(DATA) / entry.weights).eval()
    images = open_images(Path(DATA) / entry.images, entry.shape, resize=entry.resize)
    graph = frontend.import_module(module, torch.zeros(1, 3, *entry.shape[:2]), name)
    preprocessing = Preprocessing(scale=1 / 255, mean=entry.mean, std=entry.std)
    classes = graph.classify(images, preprocessing, 20) - entry.first_class
    assert round(100 * float((classes == images.labels).mean()), 1) == ACCURACY[name]
