"""What is wrong with a data set of one's own is said in one line, which names file and field."""

import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from flatbench import cli, data
from flatbench.errors import UsageError
from tests.own_data import function, loaded, protocol, write_pngs

SMALL = {"training": {"epochs": 1, "batch_size": 8}}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 8, 8), dtype=np.uint8)
LABELS = np.arange(60) % 3
ARRAYS = {
    **{"train_images": PIXELS[:40], "train_labels": LABELS[:40]},
    **{"test_images": PIXELS[40:], "test_labels": LABELS[40:]},
}


def line(folder, source, data_dir=None, **changes):
    with pytest.raises(UsageError) as caught:
        data.load_for(protocol(folder, source, **(SMALL | changes)), data_dir=data_dir)
    (said,) = str(caught.value).splitlines()
    return said


def with_label(label, at=7, name="train_labels"):
    changed = ARRAYS[name].copy()
    changed[at] = label
    return {name: changed}


FLOATS = {name: ARRAYS[name][..., None] / 255 for name in ("train_images", "test_images")}


def with_float(value):
    changed = FLOATS["train_images"].copy()
    changed[3, 2, 1, 0] = value
    return FLOATS | {"train_images": changed}


# --- arrays


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (with_label(-1), "train_labels: must be labels from 0 to k − 1, got -1"),
        (
            {"train_labels": ARRAYS["train_labels"] + 1},
            "train_labels: must be labels from 0 to k − 1 with an example of each, got 3 and no 0",
        ),
        (
            with_label(255),
            "train_labels: must be labels from 0 to k − 1 with an example of each, got 255 and "
            "no 3",
        ),
        (
            {"train_labels": np.zeros(40, int)},
            "train_labels: must be of two classes at least, got label 0 alone",
        ),
        (
            with_label(3, name="test_labels"),
            "test_labels: must be labels that FILE: train_labels has, 0 to 2, got 3",
        ),
        (
            with_label(-1, name="test_labels"),
            "test_labels: must be labels that FILE: train_labels has, 0 to 2, got -1",
        ),
        (
            {"train_labels": LABELS[:39]},
            "train_labels: must be as many as FILE: train_images, 40, got 39",
        ),
        (
            {"test_labels": LABELS[:21]},
            "test_labels: must be as many as FILE: test_images, 20, got 21",
        ),
        ({"train_images": PIXELS[:0]}, "train_images: holds nothing: its shape is [0, 8, 8]"),
        ({"test_images": PIXELS[:20, :0]}, "test_images: holds nothing: its shape is [20, 0, 8]"),
        ({"test_labels": LABELS[:0]}, "test_labels: holds nothing: its shape is [0]"),
        ({"train_labels": np.array(3)}, "train_labels: must have a shape [N] or [N, ...], got []"),
        ({"train_images": PIXELS[:40, 0, 0]}, "train_images: must have a shape [N, ...], got [40]"),
        (
            {"train_images": PIXELS[:40].reshape(40, 64)},
            "train_images: must be images [N, H, W] or [N, H, W, C] where it is uint8, got "
            "[40, 64]; a table must be floats, and tokens int64",
        ),
        (
            {"train_images": PIXELS[:40].astype(int)},
            "train_images: must be tokens [N, T] where it is int64, got [40, 8, 8]; images must "
            "be uint8 or floats",
        ),
        (
            {"train_images": PIXELS[:40, None]},
            "train_images: must be images [N, H, W, C], got [40, 1, 8, 8], which looks like "
            "[N, C, H, W]",
        ),
        (
            {"test_images": PIXELS[40:, :7]},
            "test_images: must be like FILE: train_images, uint8 [40, 8, 8, 1], got uint8 "
            "[20, 7, 8, 1]",
        ),
        (
            {"test_images": PIXELS[40:, ..., None] / 255},
            "test_images: must be like FILE: train_images, uint8 [40, 8, 8, 1], got float64 "
            "[20, 8, 8, 1]",
        ),
        (with_float(np.nan), "train_images: must be finite in float32, got nan at [3, 2, 1, 0]"),
        (with_float(-np.inf), "train_images: must be finite in float32, got -inf at [3, 2, 1, 0]"),
        (with_float(1e39), "train_images: must be finite in float32, got 1e+39 at [3, 2, 1, 0]"),
        (
            {"train_labels": np.array(["cat", "dog"] * 20)},
            "train_labels: must be an array of whole numbers or floats, got an array of <U3",
        ),
        (
            {"train_images": FLOATS["train_images"] * 1j},
            "train_images: must be an array of whole numbers or floats, got an array of complex128",
        ),
        (
            {"train_labels": np.array([object()] * 40)},
            "train_labels: cannot be read: ValueError: Object arrays cannot be loaded when "
            "allow_pickle=False",
        ),
    ],
)
def test_arrays_that_are_no_examples(tmp_path, changes, says):
    file = tmp_path / "mine.npz"
    np.savez(file, **(ARRAYS | changes))
    assert line(tmp_path, {"npz": "mine.npz"}) == f"{file}: {says.replace('FILE', str(file))}"


def test_a_class_too_small_to_be_split(tmp_path):
    np.savez(tmp_path / "mine.npz", images=PIXELS[:4], labels=[0, 1, 1, 1])
    assert line(tmp_path, {"npz": "mine.npz"}) == (
        "data.test = 0.2 must split the 4 training examples into "
        "two parts of at least 2 examples, one of each class"
    )


def test_a_test_part_that_is_there_already(tmp_path):
    np.savez(tmp_path / "mine.npz", **ARRAYS)
    assert line(tmp_path, {"npz": "mine.npz"}, test=0.5).startswith(
        "data.test must be left out: mine has a test part of its own, got 0.5"
    )


# --- npz


def test_no_npz(tmp_path):
    assert line(tmp_path, {"npz": "none/mine.npz"}) == (
        f"data.source.npz: there is no file {tmp_path / 'none' / 'mine.npz'}"
    )
    (tmp_path / "folder.npz").mkdir()
    assert line(tmp_path, {"npz": "folder.npz"}).startswith("data.source.npz: there is no file ")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", np.lib.format.MAGIC_PREFIX + b"\x01\x00", b"\x80\x04."]
)
def test_no_zip(tmp_path, content):
    file = tmp_path / "mine.npz"
    file.write_bytes(content)
    expected = f"{file}: is not an .npz file, or a truncated one"
    assert line(tmp_path, {"npz": "mine.npz"}) == expected


def test_a_truncated_npz(tmp_path):
    file = tmp_path / "mine.npz"
    np.savez(file, **ARRAYS)
    whole = file.stat().st_size
    for size in (1, whole // 2, whole - 30):
        np.savez(file, **ARRAYS)
        os.truncate(file, size)
        expected = f"{file}: is not an .npz file, or a truncated one"
        assert line(tmp_path, {"npz": "mine.npz"}) == expected


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damaged_byte_of_an_array_passes(tmp_path, save):
    file = tmp_path / "mine.npz"
    save(file, **ARRAYS)
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo("train_images.npy")
    start = entry.header_offset + 30 + len(entry.filename) + 20  # past the local header
    for at in np.linspace(start, start + entry.compress_size - 25, 20, dtype=int):
        damaged = bytearray(content)
        damaged[at] ^= 0x55
        file.write_bytes(damaged)
        said = line(tmp_path, {"npz": "mine.npz"})
        assert said.startswith(f"{file}: train_images: cannot be read: ")


@pytest.mark.parametrize("names", [(), ("train_images", "train_labels"), ("images", "targets")])
def test_an_npz_with_other_names(tmp_path, names):
    file = tmp_path / "mine.npz"
    np.savez(file, **dict.fromkeys(names, PIXELS))
    assert line(tmp_path, {"npz": "mine.npz"}) == (
        f"{file}: must hold train_images, train_labels, test_images, test_labels; or x_train, "
        f"y_train, x_test, y_test; or images, labels; got {', '.join(names) or 'no array'}"
    )


# --- folder


@pytest.fixture
def pictures(tmp_path):
    """train/ and test/ with three classes each."""
    write_pngs(tmp_path / "pngs" / "train", PIXELS[:40], LABELS[:40])
    write_pngs(tmp_path / "pngs" / "test", PIXELS[40:], LABELS[40:])
    return tmp_path / "pngs"


def of_pictures(pictures):
    return line(pictures.parent, {"folder": "pngs"})


def test_no_folder(tmp_path):
    expected = f"data.source.folder: there is no folder {tmp_path / 'none'}"
    assert line(tmp_path, {"folder": "none"}) == expected


@pytest.mark.parametrize("holding", [[], ["a.png"]])
def test_a_folder_without_class_folders(tmp_path, holding):
    for name in holding:
        Image.fromarray(PIXELS[0]).save(tmp_path / name)
    said = line(tmp_path, {"folder": "."})
    assert said == f"{tmp_path}: must hold a folder for each class, and holds none"


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("test", "must hold test or val beside train, or class folders alone"),
        ("train", "must hold train beside test, or class folders alone"),
    ],
)
def test_a_part_is_missing(pictures, gone, says):
    shutil.rmtree(pictures / gone)
    assert of_pictures(pictures) == f"{pictures}: {says}"


@pytest.mark.parametrize(("lacks", "has"), [("test", "train"), ("train", "test")])
def test_a_class_is_missing_in_one_part(pictures, lacks, has):
    shutil.rmtree(pictures / lacks / "class 1")
    assert of_pictures(pictures) == (
        f"{pictures / lacks}: must have the class folders that {pictures / has} has: there is no "
        "'class 1'"
    )


def test_a_class_without_images(pictures):
    for file in (pictures / "train" / "class 1").iterdir():
        file.unlink()
    (pictures / "train" / "class 1" / "notes.txt").touch()
    expected = f"{pictures / 'train' / 'class 1'}: must hold images, and holds none"
    assert of_pictures(pictures) == expected


def test_one_class(tmp_path):
    write_pngs(tmp_path / "pngs", PIXELS[:9], [0] * 9)
    assert line(tmp_path, {"folder": "pngs"}) == (
        f"{tmp_path / 'pngs'}: classes: must be of two classes at least, got label 0 alone"
    )


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_an_image_that_cannot_be_opened(pictures, damage):
    file = pictures / "test" / "class 2" / "00010.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 0x55
    damaged = {"truncated": content[:60], "empty": b"", "text": b"no image", "flipped": content}
    file.write_bytes(damaged[damage])
    assert of_pictures(pictures).startswith(f"{file}: cannot be read as an image: ")


def test_images_of_different_sizes(pictures):
    file = pictures / "test" / "class 2" / "00010.png"
    Image.fromarray(PIXELS[0, :5]).save(file)
    first = pictures / "train" / "class 0" / "00000.png"
    assert of_pictures(pictures) == f"{file}: must be 8×8 pixels, as {first} is, got 8×5"


def test_an_image_of_more_than_8_bits(pictures):
    file = pictures / "train" / "class 0" / "00000.png"
    Image.fromarray(PIXELS[0].astype(np.uint16) * 200).save(file)
    said = of_pictures(pictures)
    assert said.startswith(f"{file}: must be grey or coloured with 8 bits, got mode I")


# --- torchvision


def test_no_class_of_torchvision(tmp_path):
    for name in ("KMIST", "FakeData", "mnist", "kmnist"):
        assert line(tmp_path, {"torchvision": name}) == (
            "data.source.torchvision must be a class of torchvision.datasets that takes root, as "
            f"KMNIST, got {name!r}"
        )


def test_a_class_that_is_not_there_says_which_command_fetches_it(tmp_path):
    said = line(tmp_path, {"torchvision": "KMNIST"}, tmp_path)
    where = "data.source.torchvision: KMNIST is not found (or its checksum is wrong) in "
    assert said.startswith(f"{where}{tmp_path}: ")
    assert said.endswith(
        f"; download it there with: flatbench download KMNIST --data-dir {tmp_path}"
    )
    source = {"torchvision": "EMNIST", "options": {"split": "letters"}}
    said = line(tmp_path, source, tmp_path)
    assert said.endswith(f"flatbench download EMNIST --data-dir {tmp_path} --option split=letters")
    said = line(tmp_path, {"torchvision": "FER2013"}, tmp_path)
    assert said.endswith("; torchvision does not download it")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("KMNIST", {"splt": "x"}, "options: 'splt' is unknown: torchvision's KMNIST takes train"),
        ("KMNIST", {"train": True}, "options must not hold train, which flatbench sets"),
        ("SVHN", {"root": "x"}, "options must not hold root, which flatbench sets"),
        ("EMNIST", {}, "options: 'split' is missing: torchvision's EMNIST takes split"),
        ("SVHN", {"split": "trian"}, "SVHN in "),
    ],
)
def test_options_that_a_class_does_not_take(tmp_path, name, options, says):
    said = line(tmp_path, {"torchvision": name, "options": options}, tmp_path)
    assert said.startswith(f"data.source.torchvision: {says}")


def test_a_class_that_gives_no_images_of_one_size_with_labels(tmp_path, monkeypatch):
    class Odd:
        def __init__(self, root, train=True, labels="int"):
            self.labels = labels

        def __len__(self):
            return 10

        def __getitem__(self, i):
            if self.labels == "raises":
                raise OSError("truncated\nfile")
            picture = Image.fromarray(PIXELS[i, : 8 - (self.labels == "sizes" and i == 4)])
            if self.labels == "tensor":
                picture = torch.zeros(3, 8, 8)
            return picture, "cat" if self.labels == "names" else i % 2

    monkeypatch.setattr(torchvision.datasets, "Odd", Odd, raising=False)
    for labels, says in (
        ("sizes", "torchvision's Odd, train[4]: must be 8×8 pixels, as torchvision's Odd, "),
        ("tensor", "torchvision's Odd, train[0]: must be a PIL image, got Tensor"),
        ("names", "torchvision's Odd, train: targets: must be an array of whole numbers or "),
        ("raises", "data.source.torchvision: Odd in DIR: OSError: truncated file"),
    ):
        source = {"torchvision": "Odd", "options": {"labels": labels}}
        assert line(tmp_path, source, tmp_path).startswith(says.replace("DIR", str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cifar"], "data set must be one of fashion-mnist, cifar10, cifar100, or a class of "),
        (["FakeData"], "data set FakeData must be a class of torchvision.datasets that takes root"),
        (["FER2013"], "data set FER2013: torchvision does not download FER2013"),
        (["cifar10", "--option", "a=b"], "data set cifar10: takes no options, got a"),
        (["KMNIST", "--option", "a=b"], "data set KMNIST: options: 'a' is unknown: "),
        (["KMNIST", "--option", "ab"], "argument --option: must be NAME=VALUE, got 'ab'"),
        (["KMNIST", "--option", "=b"], "argument --option: must be NAME=VALUE, got '=b'"),
    ],
)
def test_a_download_that_cannot_be(tmp_path, capsys, arguments, says):
    assert cli.main(["download", *arguments, "--data-dir", str(tmp_path)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"flatbench: {says}")


def test_a_failed_download_of_any_class_is_one_line(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("no\n  network")

    monkeypatch.setattr(torchvision.datasets.KMNIST, "download", fail)
    with pytest.raises(UsageError) as caught:
        data.download("KMNIST", tmp_path)
    assert str(caught.value) == (f"data set KMNIST: cannot be downloaded to {tmp_path}: no network")


# --- function


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        ("None", "NoneType"),
        ("3, 4", "a tuple of 2: int, int"),
        ("(x, y), (x,)", "a tuple of 2: tuple of 2, tuple of 1"),
        ("(x, y), (x, y), (x, y)", "a tuple of 3: tuple of 2, tuple of 2, tuple of 2"),
        ("{'train': (x, y)}", "a dict with 'train'"),
        ("{}", "a dict with no key"),
    ],
)
def test_a_function_that_returns_something_else(tmp_path, returned, got):
    reference = function(tmp_path, f"x, y = np.zeros((9, 4)), np.arange(9) % 2\nreturn {returned}")
    assert line(tmp_path, reference) == (
        f"data.source.function: {reference}: must return (train, test) or a dict of them, each "
        f"(inputs, targets), got {got}"
    )


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ("np.zeros((20, 4))", "np.full(20, np.nan)", "targets: must be finite in float32, got nan"),
        ("np.zeros((20, 4))", "[[1], [2, 3]]", "targets: must be an array or a tensor, got list"),
        ("np.zeros((20, 4))", "None", "targets: must be an array of whole numbers or floats, got "),
        ("None", "np.arange(20) % 2", "inputs: must be an array of whole numbers or floats, got "),
        ("torch.full((20, 4), torch.inf)", "np.arange(20) % 2", "inputs: must be finite in "),
        ("np.zeros((20, 4))", "torch.arange(20) % 2 - 1", "targets: must be labels from 0 to k "),
        ("np.zeros((20, 4))", "torch.arange(19) % 2", "targets: must be as many as ./mine.py:load"),
    ],
)
def test_a_function_whose_arrays_are_no_examples(tmp_path, x, y, says):
    reference = function(tmp_path, f"return ({x}, {y}), ({x}, {y})")
    assert line(tmp_path, reference).startswith(f"{reference}: train {says}")


def test_a_function_that_is_not_there_or_raises(tmp_path):
    assert "there is no file" in line(tmp_path, "./none.py:load")
    reference = function(tmp_path, "raise ValueError('no\\nnews')")
    expected = f"data.source.function: {reference}: ValueError: no news"
    assert line(tmp_path, reference) == expected
    source = {"function": reference, "options": {"skale": 2}}
    assert line(tmp_path, source) == (
        f"data.source.options: 'skale' is unknown: {reference} takes scale, kind"
    )


# --- what is asked for does not fit what is there

TABLE = "x = np.random.default_rng(0).normal(size=(40, 3))\n"
REGRESSION = TABLE + "return (x[:30], x[:30, 0]), (x[30:], x[30:, 0])"
CLASSES = TABLE + "y = np.arange(40) % 2\nreturn (x[:30], y[:30]), (x[30:], y[30:])"


def test_what_does_not_fit(tmp_path):
    reference = function(tmp_path, CLASSES)
    assert line(tmp_path, reference, augmentation="crop") == (
        'data.augmentation must be "none" where the inputs are no images, got "crop" with inputs '
        "[N, 3]"
    )
    assert line(tmp_path, reference, training={"epochs": 1, "batch_size": 31}) == (
        "protocol tiny: training.batch_size must be at most 30, the number of training examples of "
        "mine, got 31"
    )
    changes = {"training": {"epochs": 1, "batch_size": 16}, "validation": 0.5}
    assert line(tmp_path, reference, **changes).startswith(
        "protocol tiny: training.batch_size must be at most 15, "
    )
    assert line(tmp_path, reference, train_examples=1).startswith(
        "data.train_examples = 1 must split the 30 training examples into two parts of at least 2 "
    )
    assert loaded(tmp_path, reference, training={"epochs": 1, "batch_size": 30}).classes == 2


def test_what_does_not_fit_a_regression(tmp_path):
    reference = function(tmp_path, REGRESSION)
    assert line(tmp_path, reference) == (
        "protocol tiny: training.loss must be one of your own: cross-entropy is of class labels, "
        "and mine has targets [N] of float32"
    )
    assert line(tmp_path, reference, label_noise=0.1) == (
        "data.label_noise must be 0 where the targets are no class labels, got 0.1"
    )
    own = {"training": {"epochs": 1, "batch_size": 16, "loss": "./task.py:loss"}}
    assert line(tmp_path, reference, sharpness={"normalised": ["hessian_trace"]}, **own) == (
        "protocol tiny: sharpness.normalised must be left out where the targets are no class "
        "labels: there are no logits, got hessian_trace"
    )
    assert line(tmp_path, reference, validation=0.999) == (
        "data.validation = 0.999 must split the 30 training examples into two parts of at least "
        "one example"
    )
