"""Images and weights from outside, checked before anything uses them.

Images are raw: float32 arrays (N, H, W, C) in the source's own unit (0..255, or 0..16 for the digits), because the
preprocessing belongs to the model and travels in its integer graph.
"""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator, Sequence
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
    "Images",
    "digits",
    "load_images",
    "load_labelled",
    "load_weights",
    "open_images",
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


_MODES = frozenset(
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"]
)


def _read_image(
    path: Path, shape: tuple[int, int, int], raw_max: float, resize: int | None = None
) -> np.ndarray:
    height, width, channels = shape
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # convert() would clip sixteen bits instead of scaling them
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            mode = image.mode
            image = image.convert("L" if channels == 1 else "RGB")
            if resize is not None:
                image = _centre(image, resize, width, height)
            elif image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)
            pixels = np.asarray(image, dtype=np.float32)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: must be a readable image, but {error}; replace or remove it") from None
    if mode not in _MODES:
        raise DataError(
            f"{path}: must have eight or sixteen bits per channel, not mode {mode}; convert it to grey or RGB"
        )
    return pixels.reshape(shape) * np.float32(raw_max / 255.0)


def _centre(image: Image.Image, side: int, width: int, height: int) -> Image.Image:
    """The shorter side resized to `side`, the longer one in proportion, then the centre of width x height."""
    factor = side / min(image.size)
    size = tuple(max(side, round(extent * factor)) for extent in image.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return image.crop((left, top, left + width, top + height))


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
    found, classes = _class_folders(directory)
    if not found:
        raise DataError(
            f"{directory}: must hold one folder of images per class, but no such images were found"
        )
    images = np.stack([_read_image(path, shape, raw_max) for path, _ in found])
    return images, np.array([label for _, label in found]), classes


def _class_folders(directory: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    classes = [folder for folder in sorted(directory.iterdir()) if folder.is_dir()]
    if classes and all(folder.name.isdecimal() for folder in classes):
        classes.sort(key=lambda folder: int(folder.name))
    found = [(path, label) for label, folder in enumerate(classes) for path in _image_paths(folder)]
    return found, [folder.name for folder in classes]


class Images(Sequence):
    """Raw images that are read when they are needed: `images[i]` is float32 (H, W, C), `images[i:j]` is (N, H, W, C).

    Only what is asked for is in memory, so the number of images does not matter.
    """

    def __init__(
        self, read: Callable[[int], np.ndarray], names: Sequence[str], labels: np.ndarray | None = None
    ):
        self._read, self.names = read, list(names)
        self.labels = labels
        """Classes (N,), where they are known."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return np.stack([self._read(i) for i in range(len(self))[index]])
        return self._read(range(len(self))[index])

    def batches(self, size: int) -> Iterator[np.ndarray]:
        """All images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def take(self, indices: Sequence[int]) -> Images:
        """The images at `indices`."""
        indices = [int(i) for i in indices]
        labels = None if self.labels is None else self.labels[indices]
        return Images(lambda i: self._read(indices[i]), [self.names[i] for i in indices], labels)

    def split(self, count: int) -> tuple[Images, Images]:
        """`count` images at equal distances, and all others: to calibrate on and to measure on."""
        if not 0 < count < len(self):
            raise DataError(f"a split must take 1..{len(self) - 1} of {len(self)} images, not {count}")
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        return self.take(chosen), self.take(np.setdiff1d(np.arange(len(self)), chosen))


def open_images(
    source: object,
    shape: tuple[int, int, int],
    *,
    raw_max: float = 255.0,
    resize: int | None = None,
    classes: int | None = None,
) -> Images:
    """Images of (H, W, C) in raw units 0..raw_max from any kind of source:

    a folder with labels.csv (columns file, label), with one subfolder per class, or of images alone; an .npz file or
    array, `x` (N, H, W, C) in raw units and optionally `y`; a torch Dataset whose items are an image in raw units,
    (H, W, C) or (C, H, W), or a pair of that and a label. Image files are resized so that the shorter side has `resize`
    pixels and cut at the centre, or to the shape. Raises DataError, also for labels outside 0..classes-1.
    """
    if isinstance(source, Images):
        return source
    if isinstance(source, np.ndarray):
        images = _of_array("images", source, None, shape, raw_max)
    elif not isinstance(source, str | Path):
        images = _of_dataset(source, shape, raw_max)
    elif Path(source).suffix == ".npz":
        images = _of_npz(Path(source), shape, raw_max)
    else:
        images = _of_folder(source, shape, raw_max, resize)
    where = source if isinstance(source, str | Path) else "images"
    if not len(images):
        raise DataError(f"{where}: must hold images, but holds none; give at least one")
    if images.labels is not None and classes is not None:
        outside = np.flatnonzero((images.labels < 0) | (images.labels >= classes))
        if len(outside):
            first = int(outside[0])
            raise DataError(
                f"{where}: labels must be 0..{classes - 1}, not {images.labels[first]} of {images.names[first]}; "
                "correct the labels or give the model that they belong to"
            )
    return images


def _of_folder(directory: Path | str, shape, raw_max: float, resize: int | None) -> Images:
    directory = _checked_folder(directory, shape)
    labels = None
    if (table := directory / "labels.csv").is_file():
        paths, labels = _table(table)
    elif found := _class_folders(directory)[0]:
        paths, labels = [path for path, _ in found], np.array([label for _, label in found])
    else:
        paths = _image_paths(directory)
    names = [str(path.relative_to(directory)) for path in paths]
    return Images(lambda i: _read_image(paths[i], shape, raw_max, resize), names, labels)


def _table(table: Path) -> tuple[list[Path], np.ndarray]:
    try:
        rows = list(csv.DictReader(table.read_text().splitlines()))
        paths = [table.parent / row["file"] for row in rows]
        labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    except (OSError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{table}: must have columns "file" and "label" with whole numbers, but fails with {error!r}; correct it'
        ) from None
    if missing := [path.name for path in paths if not path.is_file()]:
        raise DataError(
            f"{table}: must name existing images, but {_listed(missing)} do not exist; correct it"
        )
    return paths, labels


def _of_npz(path: Path, shape, raw_max: float) -> Images:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays.get("y")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f'{path}: must be an .npz file with an array "x", but fails with {error}; save it with numpy.savez'
        ) from None
    return _of_array(str(path), x, y, shape, raw_max)


def _of_array(where: str, x: np.ndarray, y: np.ndarray | None, shape, raw_max: float) -> Images:
    if x.ndim != 4 or x.shape[1:] != tuple(shape):
        raise DataError(
            f"{where}: must be images of shape (N, {', '.join(map(str, shape))}), not {x.shape}; reshape or resize them"
        )
    if y is not None and (y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer)):
        raise DataError(
            f"{where}: must have one whole label per image ({len(x)}), not {y.dtype} of shape {y.shape}; correct them"
        )
    names = [f"image {i}" for i in range(len(x))]
    return Images(lambda i: _checked(x[i], names[i], shape, raw_max), names, y)


def _of_dataset(dataset: object, shape, raw_max: float) -> Images:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"images must be a folder, an .npz file, an array or a Dataset with a length, not {type(dataset).__name__}"
        )

    def item(i: int) -> object:
        found = dataset[i]
        return found[0] if isinstance(found, tuple | list) else found

    names = [f"image {i}" for i in range(len(dataset))]
    labels = None
    if names and isinstance(dataset[0], tuple | list) and len(dataset[0]) > 1:
        labels = np.array([int(dataset[i][1]) for i in range(len(dataset))])
    return Images(lambda i: _checked(np.asarray(item(i)), names[i], shape, raw_max), names, labels)


def _checked(image: np.ndarray, name: str, shape, raw_max: float) -> np.ndarray:
    if image.ndim == 2 and shape[2] == 1:
        image = image[..., None]
    if image.shape != tuple(shape) and image.shape == (shape[2], *shape[:2]):
        image = image.transpose(1, 2, 0)
    if image.shape != tuple(shape):
        raise DataError(f"{name}: must have shape {tuple(shape)}, not {image.shape}; convert and resize it")
    if not (np.issubdtype(image.dtype, np.integer) or np.issubdtype(image.dtype, np.floating)):
        raise DataError(f"{name}: must hold numbers, not {image.dtype}; convert it to uint8")
    image = image.astype(np.float32)
    if not np.isfinite(image).all():
        raise DataError(f"{name}: must be finite, not NaN or infinite; check the image")
    if image.max() > raw_max:
        raise DataError(
            f"{name}: must have raw values up to {raw_max:g}, not {image.max():g}; give images before preprocessing"
        )
    return image


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
