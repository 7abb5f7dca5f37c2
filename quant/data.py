"""Images and weights from outside, checked before anything uses them.

Images are raw: float32 arrays (N, H, W, C) in the source's own unit (0..255, or 0..16 for the digits), because the
preprocessing belongs to the model and travels in its integer graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..arch.errors import UserError

__all__ = [
    "DIGITS_RAW_MAX",
    "IMAGE_SUFFIXES",
    "DataError",
    "digits",
    "load_images",
    "load_labelled",
    "load_weights",
]

DIGITS_RAW_MAX = 16.0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")


class DataError(UserError):
    """An image, folder or weights file that cannot be used; the message names it, the reason and the remedy."""


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8, 1) of raw values 0..16 and labels (N,) of scikit-learn's handwritten digits.

    "test" is every third image of each class in the order of the file, "train" the other two thirds; calibration
    takes its images from "train" only.
    """
    if split not in ("train", "test"):
        raise DataError(f'split must be "train" or "test", not {split!r}')
    from sklearn.datasets import load_digits  # imported here, because it takes a second

    source = load_digits()
    images, labels = source.images.astype(np.float32)[..., None], source.target.astype(np.int64)
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        held_out[np.flatnonzero(labels == label)[2::3]] = True
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], labels[chosen]


def _read_image(path: Path, shape: tuple[int, int, int], raw_max: float) -> np.ndarray:
    height, width, channels = shape
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # convert() would clip sixteen bits instead of scaling them
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("L" if channels == 1 else "RGB")
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: must be a readable image, but {error}; replace or remove it") from None
    return pixels.reshape(shape) * np.float32(raw_max / 255.0)


def _image_paths(directory: Path) -> list[Path]:
    return sorted(p for p in directory.iterdir() if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES)


def _checked_folder(directory: Path | str, shape: tuple[int, int, int]) -> Path:
    if len(shape) != 3 or shape[2] not in (1, 3):
        raise DataError(f"the shape of images must be (height, width, 1 or 3), not {tuple(shape)}")
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(
            f"{directory}: must be a folder of images, but there is none; give an existing folder"
        )
    return directory


def load_images(
    directory: Path | str, shape: tuple[int, int, int], raw_max: float = 255.0
) -> tuple[np.ndarray, list[str]]:
    """The images directly in a folder, by name, as raw values 0..raw_max (N, H, W, C), and their file names.

    Images are converted to grey (C = 1) or RGB (C = 3) and resized bilinearly where their size differs.
    """
    directory = _checked_folder(directory, shape)
    paths = _image_paths(directory)
    if not paths:
        raise DataError(f"{directory}: must hold images ({', '.join(IMAGE_SUFFIXES)}), but holds none")
    return np.stack([_read_image(path, shape, raw_max) for path in paths]), [path.name for path in paths]


def load_labelled(
    directory: Path | str, shape: tuple[int, int, int], raw_max: float = 255.0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images of a folder with one subfolder per class: images (N, H, W, C), labels (N,), and the class names.

    Labels count the subfolders in order of name, or in order of number where every name is a number.
    """
    directory = _checked_folder(directory, shape)
    classes = [folder for folder in sorted(directory.iterdir()) if folder.is_dir()]
    if classes and all(folder.name.isdecimal() for folder in classes):
        classes.sort(key=lambda folder: int(folder.name))
    found = [(path, label) for label, folder in enumerate(classes) for path in _image_paths(folder)]
    if not found:
        raise DataError(
            f"{directory}: must hold one folder of images per class, but no such images were found"
        )
    images = np.stack([_read_image(path, shape, raw_max) for path, _ in found])
    return images, np.array([label for _, label in found]), [folder.name for folder in classes]


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise DataError(f"{path}: must be a weights file, but there is none; give an existing file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise DataError(f"{path}: must be a complete safetensors file, but {error}; copy it again") from None
    except Exception as error:  # torch.load raises a dozen unrelated types on foreign files
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise DataError(
            f"{path}: must be a state dict saved by torch.save, but {reason}; save model.state_dict() again"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise DataError(
            f"{path}: must hold a state dict of tensors, not {type(loaded).__name__}; save state_dict()"
        )
    return loaded


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def load_weights(module: torch.nn.Module, path: Path | str) -> torch.nn.Module:
    """Load a safetensors file or a state dict (.pt, .pth; nothing is unpickled) into the module, and return it.

    All or nothing: keys, shapes and values are checked first, and one `DataError` lists every mismatch.
    """
    path = Path(path)
    weights = _read_weights(path)
    wanted = module.state_dict()
    faults = []
    # BatchNorm's step count does not matter to inference, and older files lack it.
    if missing := [k for k in wanted if k not in weights and not k.endswith("num_batches_tracked")]:
        faults.append(f"lacks {_listed(missing)}")
    if unexpected := [key for key in weights if key not in wanted]:
        faults.append(f"has unexpected {_listed(unexpected)}")
    for key in wanted.keys() & weights.keys():
        if weights[key].shape != wanted[key].shape:
            faults.append(f"{key} is {tuple(weights[key].shape)} instead of {tuple(wanted[key].shape)}")
        elif not bool(torch.isfinite(weights[key]).all()):
            faults.append(f"{key} holds NaN or infinity")
    if faults:
        raise DataError(
            f"{path}: must fit {type(module).__name__}, but {'; '.join(faults)}; give the weights of this model"
        )
    module.load_state_dict(weights, strict=False)
    return module
