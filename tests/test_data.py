"""Splits, noise, batches and augmentation; and the three file formats, in small files made here."""

import gzip
import hashlib
import os
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torchvision
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torchvision.transforms import functional as reference

from flatbench import data
from flatbench.data import fashion as fashion_files
from flatbench.errors import UsageError
from flatbench.protocols.protocol import Data

DIGITS = Data("digits")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def contents(*parts):
    """Every example, image and label together, with how often it occurs."""
    return Counter(
        (hashlib.sha256(image.numpy().tobytes()).digest(), int(label))
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )


def shares(part):
    counts = np.bincount(part.labels.numpy(), minlength=10) / len(part)
    return counts


# --- splits


def test_digits_are_those_of_scikit_learn_each_in_one_part():
    found = data.load(Data("digits", validation=0.25))
    bunch = load_digits()
    original = data.Part(
        torch.from_numpy(bunch.images[..., None].astype(np.uint8)), torch.from_numpy(bunch.target)
    )
    # equal as multisets: nothing is lost, and nothing stands in two parts
    assert contents(found.train, found.validation, found.test) == contents(original)
    assert [len(p) for p in (found.train, found.validation, found.test)] == [1077, 360, 360]
    assert (found.classes, found.channels) == (10, 1)
    assert found.train.images.shape[1:] == (8, 8, 1)
    assert found.train.images.dtype == torch.uint8
    assert found.train.images.max() == 16


@pytest.mark.parametrize("examples", [None, 500])
@pytest.mark.parametrize("validation", [0.1, 0.25, 0.5])
def test_every_part_has_the_classes_in_the_proportions_of_the_whole(validation, examples):
    found = data.load(Data("digits", validation=validation, train_examples=examples))
    whole = np.bincount(load_digits().target) / 1797
    for part in (found.train, found.validation, found.test):
        # stratified: off by no more than rounding, which three splits do in turn
        assert np.abs(shares(part) - whole).max() * len(part) < 3


@pytest.mark.parametrize(
    "settings",
    [
        Data("digits", validation=0.25),
        Data("digits", validation=0.5, label_noise=0.4),
        Data("digits", train_examples=100, augmentation="crop"),
    ],
)
def test_the_test_part_is_always_the_same(settings):
    found, plain = data.load(settings), data.load(DIGITS)
    assert torch.equal(found.test.images, plain.test.images)
    assert torch.equal(found.test.labels, plain.test.labels)
    # and what is left out of training comes from the training part
    assert contents(found.train, found.validation) <= contents(plain.train)


def test_splits_do_not_listen_to_the_global_generators():
    settings = Data("digits", validation=0.25, train_examples=300)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - scikit-learn's default generator
        found.append(data.load(settings))
    for name in ("train", "validation", "test"):
        one, two = (getattr(dataset, name) for dataset in found)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


@given(count=st.integers(10, 1067))
def test_as_many_training_examples_as_asked_for(count):
    found = data.load(Data("digits", validation=0.25, train_examples=count))
    assert len(found.train) == count
    assert len(found.validation) == 360


def test_more_training_examples_than_there_are_is_all_of_them():
    assert len(data.load(Data("digits", train_examples=10_000)).train) == 1437


@pytest.mark.parametrize(
    ("settings", "wish"),
    [
        (Data("digits", train_examples=9), "data.train_examples = 9"),
        (Data("digits", train_examples=1430), "data.train_examples = 1430"),
        (Data("digits", validation=0.001), "data.validation = 0.001"),
        (Data("digits", validation=0.999), "data.validation = 0.999"),
    ],
)
def test_a_part_without_every_class_is_refused(settings, wish):
    assert message(settings).startswith(f"{wish} must split the 1437 training examples")


def test_normalised_with_the_statistics_of_the_training_part_alone():
    found = data.load(Data("digits", validation=0.25, train_examples=200))
    x = found.normalise(found.train.images).double()
    assert x.shape == (200, 1, 8, 8)
    assert x.mean() == pytest.approx(0, abs=1e-6)
    assert x.std(correction=0) == pytest.approx(1, abs=1e-6)
    # the whole's statistics are others
    everything = torch.from_numpy(load_digits().images)
    assert found.mean.item() != pytest.approx(everything.mean().item(), rel=1e-4)


def test_normalised_images_are_channels_last():
    x = data.load(DIGITS).normalise(torch.zeros(4, 8, 8, 1, dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


# --- label noise


@given(
    count=st.integers(1, 400),
    classes=st.integers(2, 12),
    fraction=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 2**63),
)
def test_exactly_the_fraction_of_the_labels_becomes_wrong(count, classes, fraction, seed):
    labels = torch.randint(0, classes, (count,), generator=rng(1))
    before = labels.clone()
    noisy = data.noisy_labels(labels, classes, fraction, rng(seed))
    assert torch.equal(labels, before)  # a copy came out
    assert (noisy != labels).sum() == round(fraction * count)
    assert ((noisy >= 0) & (noisy < classes)).all()
    assert torch.equal(noisy, data.noisy_labels(labels, classes, fraction, rng(seed)))


def test_noise_is_symmetric():
    """Every class is hit alike, and goes to every other class alike."""
    labels = torch.arange(10).repeat(1000)
    noisy = data.noisy_labels(labels, 10, 0.4, rng())
    moved = noisy != labels
    table = np.zeros((10, 10))
    np.add.at(table, (labels[moved].numpy(), noisy[moved].numpy()), 1)
    off_diagonal = table[~np.eye(10, dtype=bool)]
    assert (off_diagonal > 0).all()
    assert scipy.stats.chisquare(off_diagonal).pvalue > 0.01
    places = moved.reshape(10, 1000).sum(1).numpy()  # no part of the file is spared
    assert scipy.stats.chisquare(places).pvalue > 0.01


def test_another_seed_is_other_noise():
    labels = torch.zeros(200, dtype=torch.int64)
    one, two = (data.noisy_labels(labels, 10, 0.4, rng(seed)) for seed in (1, 2))
    assert not torch.equal(one, two)
    assert not torch.equal(one != labels, two != labels)


def test_loading_makes_no_noise():
    clean, noisy = data.load(DIGITS), data.load(Data("digits", label_noise=0.4))
    for name in ("train", "test"):
        assert torch.equal(getattr(clean, name).labels, getattr(noisy, name).labels)


# --- batches


@given(examples=st.integers(1, 300), batch_size=st.integers(2, 70), seed=st.integers(0, 2**63))
def test_an_epoch_visits_every_example_once_but_a_single_leftover(examples, batch_size, seed):
    batches = list(data.batches(examples, batch_size, rng(seed), "cpu"))
    leftover = examples % batch_size == 1
    visited = torch.cat(batches).tolist() if batches else []
    assert len(visited) == examples - leftover
    assert len(set(visited)) == len(visited)
    assert set(visited) <= set(range(examples))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(2 <= len(batch) <= batch_size for batch in batches)


def test_epochs_differ_and_seeds_repeat():
    generator = rng(3)
    first, second = (
        torch.cat(list(data.batches(100, 10, generator, "cpu"))).tolist() for _ in range(2)
    )
    again = torch.cat(list(data.batches(100, 10, rng(3), "cpu"))).tolist()
    assert first == again
    assert first != second
    assert first != sorted(first)


# --- augmentation

SIZE = 10


def colours(count, channels=3):
    """Images of random bytes, so that no crop of one is another."""
    return torch.randint(1, 256, (count, SIZE, SIZE, channels), dtype=torch.uint8, generator=rng(7))


def reference_views(image):
    """torchvision's every crop of the padded image, plain and mirrored: its bytes -> its place."""
    padded = reference.pad(image.permute(2, 0, 1), [data.PADDING] * 4)
    views = {}
    for top in range(2 * data.PADDING + 1):
        for left in range(2 * data.PADDING + 1):
            crop = reference.crop(padded, top, left, SIZE, SIZE)
            for flipped, view in enumerate((crop, reference.hflip(crop))):
                pixels = view.permute(1, 2, 0).contiguous().numpy().tobytes()
                assert pixels not in views
                views[pixels] = top, left, flipped
    return views


def places(kind, images, batch, seed):
    """(top, left, flipped) of each augmented image, found among torchvision's views of its own."""
    views = [reference_views(image) for image in images]
    padded = data.pad(images)
    augmented = data.augment(padded, batch, kind, SIZE, rng(seed))
    assert augmented.shape == (len(batch), *images.shape[1:])
    assert augmented.dtype == torch.uint8
    pairs = zip(batch.tolist(), augmented.contiguous(), strict=True)
    return np.array([views[i][image.numpy().tobytes()] for i, image in pairs])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_each_image_is_a_view_that_torchvision_makes_of_it(kind, channels):
    images = colours(5, channels)
    batch = torch.tensor([4, 0, 0, 2, 3, 1, 4])
    found = places(kind, images, batch, seed=1)  # a KeyError there: it is none of the views
    assert (found == places(kind, images, batch, seed=1)).all()
    assert (found != places(kind, images, batch, seed=2)).any()


def test_crops_and_flips_are_uniform_and_drawn_for_each_image():
    images = colours(3)
    batch = torch.arange(3).repeat(1800)
    found = places("crop-flip", images, batch, seed=0)
    table = np.zeros((9, 9, 2))
    np.add.at(table, tuple(found.T), 1)
    assert (table > 0).all()
    # 5,400 draws over 162 places: uniform, hence also independent of each other
    assert scipy.stats.chisquare(table.ravel()).pvalue > 0.01
    # neighbours in a batch do not share them
    assert (found[1:] == found[:-1]).all(axis=1).mean() < 0.05


def test_crop_does_not_flip():
    images = colours(2)
    found = places("crop", images, torch.arange(2).repeat(200), seed=0)
    assert set(found[:, 2]) == {0}
    assert set(found[:, 0]) == set(found[:, 1]) == set(range(9))


def test_none_is_the_images_themselves():
    images, batch = colours(6), torch.tensor([5, 1])
    assert torch.equal(data.augment(images, batch, "none", SIZE, rng()), images[batch])


# --- Fashion-MNIST's files


def idx(array, kind=8):
    """MNIST's format: http://yann.lecun.com/exdb/mnist."""
    header = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return header + array.tobytes()


TRAIN, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)
CLASSES = (np.arange(50) % 10).astype(np.uint8)


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    monkeypatch.delenv("FLATBENCH_DATA", raising=False)
    for part, count in (("train", 50), ("t10k", 20)):
        files = {"images-idx3": idx(IMAGES[:count]), "labels-idx1": idx(CLASSES[:count])}
        for name, content in files.items():
            file = f"{part}-{name}-ubyte.gz"
            (tmp_path / file).write_bytes(gzip.compress(content))
            publish(monkeypatch, file, content)
    return tmp_path


def publish(monkeypatch, file, content):
    """Have a small file stand for the one of that name that is published."""
    dimensions = content[3]
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    checksum = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(fashion_files.PUBLISHED, file, (shape, checksum))


def message(settings, folder=None):
    with pytest.raises(UsageError) as caught:
        data.load(settings, data_dir=folder)
    (line,) = str(caught.value).splitlines()
    return line


@pytest.mark.parametrize("below", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_read(fashion, tmp_path, below):
    folder = tmp_path / "elsewhere" / below
    folder.mkdir(parents=True)
    for file in fashion.glob("*.gz"):
        file.rename(folder / file.name)
    found = data.load(Data("fashion-mnist"), data_dir=tmp_path / "elsewhere")
    assert torch.equal(found.train.images, torch.from_numpy(IMAGES)[..., None])
    assert found.train.labels.tolist() == CLASSES.tolist()
    assert found.train.labels.dtype == torch.int64
    assert torch.equal(found.test.images, torch.from_numpy(IMAGES[:20])[..., None])
    assert (found.classes, found.channels, len(found.validation)) == (10, 1, 0)
    assert found.mean.item() == pytest.approx(IMAGES.mean())
    assert found.std.item() == pytest.approx(IMAGES.std())


def test_the_environment_names_the_folder(fashion, monkeypatch, tmp_path):
    monkeypatch.setenv("FLATBENCH_DATA", str(fashion))
    assert len(data.load(Data("fashion-mnist")).train) == 50
    # an argument goes before it
    monkeypatch.setenv("FLATBENCH_DATA", str(tmp_path / "none"))
    assert len(data.load(Data("fashion-mnist"), data_dir=fashion).train) == 50


def test_a_download_lands_where_load_looks(tmp_path):
    raw = torchvision.datasets.FashionMNIST.__new__(torchvision.datasets.FashionMNIST)
    raw.root = tmp_path
    assert Path(raw.raw_folder) == tmp_path / "FashionMNIST" / "raw"


def replaced(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def packed(name, content):
    return replaced(name, gzip.compress(content))


def flipped(name, at):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[at] ^= 0x55
        (folder / name).write_bytes(content)

    return damage


DAMAGES = [
    (lambda d: os.truncate(d / TRAIN, 9_000), TRAIN, "cannot be read: Compressed file ended"),
    (flipped(TRAIN, 3), TRAIN, "cannot be read: "),  # in the compressed header's flags
    (flipped(TRAIN, 20), TRAIN, "cannot be read: "),
    (flipped(TRAIN, 1_000), TRAIN, "cannot be read: "),
    (flipped(TRAIN, -6), TRAIN, "cannot be read: CRC check failed"),
    (flipped(LABELS, 12), LABELS, "cannot be read: "),
    (replaced(TRAIN, b"no archive"), TRAIN, "cannot be read: Not a gzipped file"),
    (replaced(TRAIN, b""), TRAIN, "is not a whole idx file of unsigned bytes in 3 dimension(s)"),
    (packed(TRAIN, b""), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(IMAGES)[:6]), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(IMAGES)[:-1]), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(IMAGES) + b"x"), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(IMAGES, kind=9)), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(CLASSES)), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, idx(IMAGES[:0])), TRAIN, "is not a whole idx file"),
    (packed(TRAIN, b"\0\0\x08\x03" + b"\xff" * 12), TRAIN, "is not a whole idx file"),
    (packed(LABELS, idx(IMAGES)), LABELS, "is not a whole idx file"),
    (
        packed(LABELS, idx(CLASSES[:49])),
        LABELS,
        "is not Fashion-MNIST's: it must hold 50 labels, got 49 labels",
    ),
    (
        packed(TRAIN, idx(IMAGES[:, :1, :1])),
        TRAIN,
        "is not Fashion-MNIST's: it must hold 50 images of 28x28, got 50 images of 1x1",
    ),
    (
        packed(LABELS, idx(np.where(CLASSES == 3, 255, CLASSES).astype(np.uint8))),
        LABELS,
        "is not Fashion-MNIST's: labels must be 0 to 9, got 255",
    ),
    (
        packed(LABELS, idx(np.where(CLASSES == 3, 4, CLASSES).astype(np.uint8))),
        LABELS,
        "is not Fashion-MNIST's: it must hold label 3 5 times, got it 0 times",
    ),
    (
        packed(TRAIN, idx(IMAGES[::-1])),
        TRAIN,
        "is not Fashion-MNIST's, or an altered copy: its content's SHA-256 must be ",
    ),
    (
        packed(LABELS, idx(CLASSES[::-1])),
        LABELS,
        "is not Fashion-MNIST's, or an altered copy: its content's SHA-256 must be ",
    ),
    (lambda d: (d / LABELS).unlink(), LABELS, "cannot be read: [Errno 2]"),
]


@pytest.mark.parametrize(("damage", "name", "expected"), DAMAGES)
def test_a_damaged_file_is_named_in_one_line(fashion, damage, name, expected):
    damage(fashion)
    assert message(Data("fashion-mnist"), fashion).startswith(f"{fashion / name}: {expected}")


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), mask=st.integers(1, 255))
@example(at=0, mask=8)  # one of the bits that deflate leaves unused before a stored block
def test_no_damaged_byte_passes_unnoticed(fashion, at, mask):
    """gzip's checksum sees whatever the reader does not, or the images are what they were.

    The bytes that are free to change are those of gzip's own header, and a few padding bits.
    """
    content = bytearray(gzip.compress(idx(IMAGES), mtime=0))
    content[10 + at % (len(content) - 10)] ^= mask
    (fashion / TRAIN).write_bytes(content)
    said, found = None, None
    try:
        found = data.load(Data("fashion-mnist"), data_dir=fashion)
    except UsageError as error:
        said = str(error)
    if found is None:
        assert said.startswith(f"{fashion / TRAIN}: ")
    else:
        assert torch.equal(found.train.images, torch.from_numpy(IMAGES)[..., None])


def test_fashion_mnist_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)  # Debian's package may be there
    line = message(Data("fashion-mnist"), tmp_path)
    assert line.startswith(f"data set fashion-mnist: no {TRAIN} in {tmp_path} or ")
    assert f"flatbench download fashion-mnist --data-dir {tmp_path}" in line


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(),
    reason="Debian's package dataset-fashion-mnist is not installed",
)
def test_fashion_mnist_from_the_package_of_debian(tmp_path):
    found = data.load(Data("fashion-mnist", train_examples=1000), data_dir=tmp_path)
    assert np.bincount(found.train.labels).tolist() == [100] * 10
    assert np.bincount(found.test.labels).tolist() == [1000] * 10
    assert found.test.images.shape == (10_000, 28, 28, 1)


# --- CIFAR's files


def cifar_batch(seed, count, labels):
    """As https://www.cs.toronto.edu/~kriz/cifar.html has it: a row an image, red, green, blue."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return pickle.dumps({"data": pixels, **labels})


def cifar_file(folder, name, content):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return name, hashlib.md5(content).hexdigest()


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    """Six batches of 20 images, and torchvision told of their checksums."""
    reader, folder = torchvision.datasets.CIFAR10, tmp_path / "cifar-10-batches-py"
    labels = [i % 10 for i in range(20)]
    files = [
        cifar_file(folder, name, cifar_batch(seed, 20, {"labels": labels}))
        for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    ]
    names = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    meta = cifar_file(folder, "batches.meta", names)
    monkeypatch.setattr(reader, "train_list", files[:5])
    monkeypatch.setattr(reader, "test_list", files[5:])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": meta[1]})
    return tmp_path


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    reader, folder = torchvision.datasets.CIFAR100, tmp_path / "cifar-100-python"
    labels = {"fine_labels": [*range(100)] * 2, "coarse_labels": [i % 20 for i in range(200)]}
    files = [
        cifar_file(folder, name, cifar_batch(seed, 200, labels))
        for seed, name in enumerate(["train", "test"])
    ]
    names = pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]})
    meta = cifar_file(folder, "meta", names)
    monkeypatch.setattr(reader, "train_list", files[:1])
    monkeypatch.setattr(reader, "test_list", files[1:])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": meta[1]})
    return tmp_path


def rows(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def test_cifar10_is_read(cifar10):
    found = data.load(Data("cifar10", validation=0.2), data_dir=cifar10)
    assert [len(p) for p in (found.train, found.validation, found.test)] == [80, 20, 20]
    assert (found.classes, found.channels) == (10, 3)
    expected = torch.from_numpy(rows(5, 20)).reshape(20, 3, 32, 32).permute(0, 2, 3, 1)
    assert torch.equal(found.test.images, expected)
    assert found.test.labels.tolist() == [i % 10 for i in range(20)]
    everything = np.concatenate([rows(seed, 20) for seed in range(5)]).reshape(100, 3, 32, 32)
    everything = np.ascontiguousarray(everything.transpose(0, 2, 3, 1))
    original = data.Part(torch.from_numpy(everything), torch.arange(100) % 10)
    assert contents(found.train, found.validation) == contents(original)
    mean = found.train.images.double().mean((0, 1, 2))
    torch.testing.assert_close(found.mean.double(), mean, rtol=1e-6, atol=0)
    std = found.train.images.double().std((0, 1, 2), correction=0)
    torch.testing.assert_close(found.std.double(), std, rtol=1e-6, atol=0)
    x = found.normalise(found.train.images).double()
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)


def test_cifar100_is_read_with_its_fine_labels(cifar100):
    found = data.load(Data("cifar100"), data_dir=cifar100)
    assert (found.classes, len(found.train), len(found.test)) == (100, 200, 200)
    assert found.train.labels.tolist() == [*range(100)] * 2
    expected = torch.from_numpy(rows(0, 200)).reshape(200, 3, 32, 32).permute(0, 2, 3, 1)
    assert torch.equal(found.train.images, expected)


def absent(name, folder):
    return (
        f"data set {name}: not found (or its checksum is wrong) in {folder}; download it there "
        f"with: flatbench download {name} --data-dir {folder}"
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_missing_says_how_to_get_it(tmp_path, name):
    assert message(Data(name), tmp_path) == absent(name, tmp_path)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_cifar_with_a_damaged_file_is_refused(cifar10, name, damage):
    path = cifar10 / "cifar-10-batches-py" / name
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    else:
        flipped(name, -5)(path.parent)
    assert message(Data("cifar10"), cifar10) == absent("cifar10", cifar10)


# --- download


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_failed_download_is_one_line(monkeypatch, tmp_path, error):
    def fail(*arguments, **options):
        raise error("no\n  network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "__init__", fail)
    with pytest.raises(UsageError) as caught:
        data.download("cifar10", tmp_path)
    assert str(caught.value) == (
        f"data set cifar10: cannot be downloaded to {tmp_path}: no network"
    )


def test_a_download_that_is_there_already_is_not_fetched_again(cifar10, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("fetched")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)
    data.download("cifar10", cifar10)


def test_the_test_part_is_as_large_as_asked_for():
    """Of a set without one, by class, and from the same images whatever is left to train on."""
    usual, half = (data.load(Data("digits", test=share)) for share in (None, 0.5))
    assert [len(usual.test), len(half.test)] == [360, 899]
    assert [len(part) for part in (half.train, half.test)] == [898, 899]
    counts = half.test.labels.bincount()
    assert counts.max() - counts.min() <= 6
    assert data.load(Data("digits", test=0.2)).digest == usual.digest != half.digest
