"""Images and weights from outside: what is read, and one clear error for what cannot be."""

import pickle
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from terrazzo.quant.data import DataError, digits, load_images, load_labelled, load_weights, open_images


def test_digits_split_every_image_once_and_a_third_of_each_class():
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert train.shape[1:] == test.shape[1:] == (8, 8, 1) and train.dtype == np.float32
    assert train.min() == 0 and train.max() == 16
    source = load_digits()
    both = np.concatenate([train, test]).reshape(-1, 64)
    order = np.lexsort(both.T)
    expected = source.images.reshape(-1, 64)
    assert np.array_equal(both[order], expected[np.lexsort(expected.T)])
    for label in range(10):
        total = int((source.target == label).sum())
        assert int((test_labels == label).sum()) == total // 3
        assert int((train_labels == label).sum()) == total - total // 3


def test_digits_is_the_same_every_time():
    assert np.array_equal(digits("test")[0], digits("test")[0])


def test_digits_needs_a_known_split():
    with pytest.raises(DataError, match=r'^split must be "train" or "test", not \'all\'$'):
        digits("all")


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def test_images_come_by_name_in_raw_units(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(255 - pixels).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    images, names = load_images(tmp_path, (6, 5, 3))
    assert names == ["a.PNG", "b.png"] and images.dtype == np.float32
    assert np.array_equal(images[1], pixels) and np.array_equal(images[0], 255 - pixels)
    scaled, _ = load_images(tmp_path, (6, 5, 3), raw_max=16)
    assert np.allclose(scaled, images * 16 / 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_and_size_is_converted(tmp_path, pixels, mode, channels):
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / ("x.tiff" if mode == "CMYK" else "x.png"))
    images, _ = load_images(tmp_path, (4, 7, channels))
    assert images.shape == (1, 4, 7, channels) and images.min() >= 0 and images.max() <= 255
    if mode == "I;16":
        assert images.max() > images.min(), "sixteen bits must be scaled, not clipped"


def test_labelled_folders(tmp_path, pixels):
    for label in (0, 2, 10):
        (tmp_path / str(label)).mkdir()
        Image.fromarray(pixels).save(tmp_path / str(label) / "x.png")
    images, labels, classes = load_labelled(tmp_path, (6, 5, 3))
    assert classes == ["0", "2", "10"] and labels.tolist() == [0, 1, 2] and images.shape == (3, 6, 5, 3)


def test_no_images(tmp_path):
    with pytest.raises(DataError, match=r"must hold images \(\.png, .*\), but holds none$"):
        load_images(tmp_path, (8, 8, 1))
    with pytest.raises(DataError, match=r"must hold one folder of images per class"):
        load_labelled(tmp_path, (8, 8, 1))
    with pytest.raises(DataError, match=r"absent: must be a folder of images"):
        load_images(tmp_path / "absent", (8, 8, 1))
    with pytest.raises(
        DataError, match=r"^the shape of images must be \(height, width, 1 or 3\), not \(8, 8, 2\)$"
    ):
        load_images(tmp_path, (8, 8, 2))


@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_unreadable_image(tmp_path, damage):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / "broken.png"
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(
        {"truncated": content[: len(content) // 2], "foreign": b"hello" * 9, "empty": b""}[damage]
    )
    with pytest.raises(
        DataError, match=r"broken\.png: must be a readable image, but .*; replace or remove it$"
    ):
        load_images(tmp_path, (8, 8, 1))


# Weights


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))


def _other(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "nested.pth"])
def test_weights_come_back(tmp_path, model, name):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(before, path)
    else:
        torch.save({"state_dict": before} if "nested" in name else before, path)
    assert load_weights(_other(model), path) is model
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_mismatch_is_listed_and_nothing_is_loaded(tmp_path, model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["0.weight"] = torch.zeros(4, 1, 5, 5)
    state["3.bias"][1] = float("nan")
    state["head.weight"] = state.pop("3.weight")
    save_file(state, tmp_path / "w.safetensors")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load_weights(model, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "w.safetensors: must fit Sequential, but lacks 3.weight",
        "has unexpected head.weight",
        "0.weight is (4, 1, 5, 5) instead of (4, 1, 3, 3)",
        "3.bias holds NaN or infinity",
        "give the weights of this model",
    ):
        assert part in message
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "absent", "folder"])
def test_damaged_weights(tmp_path, model, suffix, damage):
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "absent":
        path.write_bytes(
            {"truncated": content[: len(content) * 2 // 3], "foreign": b"P5 8 8" * 50, "empty": b""}[damage]
        )
    with pytest.raises(DataError, match=rf"^{re.escape(str(path))}: must be [^\n]*; [^\n]*$"):
        load_weights(model, path)


def test_nothing_is_unpickled(tmp_path, model):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "trap.pt").write_bytes(pickle.dumps({"0.weight": Trap()}))
    torch.save({"0.weight": Trap()}, tmp_path / "trap.pth")
    for name in ("trap.pt", "trap.pth"):
        with pytest.raises(DataError, match=r"must be a state dict saved by torch\.save"):
            load_weights(model, tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_list_is_no_state_dict(tmp_path, model):
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(DataError, match=r"must hold a state dict of tensors, not list"):
        load_weights(model, tmp_path / "list.pt")


# Images of any kind of source


def _files(folder, pixels, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.roll(pixels, i, axis=0)).save(folder / f"{i}.png")


def test_folder_with_a_table(tmp_path, pixels):
    _files(tmp_path / "val", pixels, 3)
    (tmp_path / "labels.csv").write_text("file,label\nval/2.png,7\nval/0.png,1\n")
    images = open_images(tmp_path, (6, 5, 3), classes=8)
    assert len(images) == 2 and images.labels.tolist() == [7, 1] and images.names[0] == "val/2.png"
    assert np.array_equal(images[0], np.roll(pixels, 2, axis=0)) and images[:2].shape == (2, 6, 5, 3)


def test_every_kind_of_source_gives_the_same_images(tmp_path, pixels):
    _files(tmp_path / "classes" / "b", pixels, 2)
    _files(tmp_path / "classes" / "a", pixels, 1)
    x = np.stack([pixels, pixels, np.roll(pixels, 1, axis=0)])
    y = np.array([0, 1, 1])
    np.savez(tmp_path / "all.npz", x=x, y=y)
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y))
    for source in (tmp_path / "classes", tmp_path / "all.npz", tensors):
        images = open_images(source, (6, 5, 3), classes=2)
        assert np.array_equal(images[:], x) and images.labels.tolist() == [0, 1, 1]
    plain = open_images(x, (6, 5, 3))
    assert plain.labels is None and [len(b) for b in plain.batches(2)] == [2, 1]


def test_split_uses_every_image_once():
    x = np.arange(7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    first, rest = open_images(x, (2, 2, 1)).split(3)
    assert [int(i.max()) for i in first] == [0, 3, 6] and [int(i.max()) for i in rest] == [1, 2, 4, 5]
    with pytest.raises(DataError, match=r"^a split must take 1\.\.6 of 7 images, not 7$"):
        open_images(x, (2, 2, 1)).split(7)


def test_shorter_side_is_resized_and_the_centre_is_cut(tmp_path):
    """A ramp along the longer side: its middle stays in the middle."""
    ramp = np.broadcast_to(np.arange(120, dtype=np.uint8) * 2, (40, 120)).copy()
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = open_images(tmp_path, (16, 16, 1), resize=20)[0]
    assert image.shape == (16, 16, 1)
    assert abs(float(image.mean()) - ramp.mean()) < 1.5
    slope = float(image[:, -1].mean() - image[:, 0].mean())
    assert abs(slope - 15 * 4) < 3  # half the pixels: two grey levels become four a pixel


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (np.zeros((0, 4, 4, 3), np.uint8), r"^images: must hold images, but holds none; give at least one$"),
        (
            np.zeros((2, 4, 4, 1), np.uint8),
            r"^images: must be images of shape \(N, 4, 4, 3\), not \(2, 4, 4, 1\)",
        ),
        ([np.full((4, 4, 3), 300)], r"^image 0: must have raw values up to 255, not 300; give images before"),
        ([np.full((4, 4, 3), np.nan)], r"^image 0: must be finite, not NaN or infinite"),
        ([np.full((4, 4, 4), 1)], r"^image 0: must have shape \(4, 4, 3\), not \(4, 4, 4\)"),
        ([np.full((4, 4, 3), "a")], r"^image 0: must hold numbers, not <U1"),
        (7, r"^images must be a folder, an \.npz file, an array or a Dataset with a length, not int$"),
    ],
)
def test_unusable_sources(source, reason):
    with pytest.raises(DataError, match=reason):
        open_images(source, (4, 4, 3))[:]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,label\n0.png,2\n", r"labels must be 0\.\.1, not 2 of 0\.png; correct the labels"),
        ("file,label\n0.png,-1\n", r"labels must be 0\.\.1, not -1"),
        ("file,label\n0.png,x\n", r'labels\.csv: must have columns "file" and "label"'),
        ("name,label\n0.png,1\n", r'labels\.csv: must have columns "file" and "label"'),
        ("file,label\n9.png,1\n", r"labels\.csv: must name existing images, but 9\.png do not exist"),
        ("file,label\n", r"must hold images, but holds none"),
    ],
)
def test_unusable_label_tables(tmp_path, pixels, text, reason):
    _files(tmp_path, pixels, 1)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_images(tmp_path, (6, 5, 3), classes=2)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "without x"])
def test_unusable_npz(tmp_path, damage):
    path = tmp_path / "x.npz"
    np.savez(path, **{"z" if damage == "without x" else "x": np.zeros((2, 4, 4, 3), np.uint8)})
    if damage != "without x":
        path.write_bytes(path.read_bytes()[:90] if damage == "truncated" else b"hello" * 9)
    with pytest.raises(DataError, match=r'x\.npz: must be an \.npz file with an array "x", but fails with'):
        open_images(path, (4, 4, 3))


def test_mode_that_cannot_be_read_without_loss(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32) * 1e5).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"must have eight or sixteen bits per channel, not mode F; convert"):
        load_images(tmp_path, (4, 4, 1))
