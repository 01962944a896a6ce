"""Data sets of one's own, from protocol files: every kind of source, and what is done with it."""

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat

from flatbench import cli, data
from flatbench.options import assignment
from flatbench.protocols.cases import grid
from flatbench.protocols.protocol import Data
from flatbench.training import trainer
from tests import tiny
from tests.own_data import digits, function, loaded, protocol, write_pngs

PARTS = ("train", "validation", "test")


def same(one, two):
    """Whether two data sets are equal in every bit."""
    assert (one.classes, one.shape, one.digest) == (two.classes, two.shape, two.digest)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.std, two.std)
    for name in PARTS:
        a, b = getattr(one, name), getattr(two, name)
        assert a.images.dtype == b.images.dtype
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    return True


# --- npz


@pytest.mark.parametrize("labels_are", [np.int64, np.uint8, ">i4"])
def test_an_npz_of_the_digits_is_the_digits(tmp_path, labels_are):
    images, labels = digits()
    np.savez_compressed(tmp_path / "mine.npz", images=images, labels=labels.astype(labels_are))
    wish = {"validation": 0.25, "train_examples": 300, "label_noise": 0.4}
    assert same(loaded(tmp_path, {"npz": "mine.npz"}, **wish), data.load(Data("digits", **wish)))


@pytest.mark.parametrize(
    "names",
    [
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
    ],
)
def test_an_npz_with_parts_keeps_them(tmp_path, names):
    built_in = data.load(Data("digits"))
    train, test = built_in.train, built_in.test
    # labels [N, 1], as Keras keeps CIFAR's; images [N, H, W]
    arrays = (train.images[..., 0], train.labels[:, None], test.images[..., 0], test.labels)
    np.savez(tmp_path / "mine.npz", **dict(zip(names, map(np.asarray, arrays), strict=True)))
    assert same(loaded(tmp_path, {"npz": "mine.npz"}), built_in)


def test_it_trains_to_the_same_record(tmp_path):
    images, labels = digits()
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    whole = tiny.table()
    (sgd, _) = grid(tiny.protocol(tmp_path, whole, "built-in"))
    whole["data"] |= {"name": "mine", "source": {"npz": "mine.npz"}}
    (mine, _) = grid(tiny.protocol(tmp_path, whole, "own"))
    one, two = trainer.train(sgd), trainer.train(mine)
    assert one.sam_sharpness == two.sam_sharpness
    assert one.test_accuracy == two.test_accuracy


# --- folder


def by_class(images, labels):
    order = np.argsort(labels, kind="stable")
    return images[order], labels[order]


def test_a_folder_of_the_digits_is_the_digits_class_by_class(tmp_path):
    images, labels = by_class(*digits())
    write_pngs(tmp_path / "pngs", images, labels)
    (tmp_path / "pngs" / "class 3" / "Thumbs.db").touch()  # no image by its name
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    found = loaded(tmp_path, {"folder": "pngs"}, validation=0.25)
    assert same(found, loaded(tmp_path, {"npz": "mine.npz"}, validation=0.25))
    assert (found.classes, found.shape) == (10, (1, 8, 8))


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_a_folder_with_parts_keeps_them(tmp_path, test_part):
    images, labels = by_class(*digits())
    write_pngs(tmp_path / "pngs" / "train", images[::2], labels[::2])
    write_pngs(tmp_path / "pngs" / test_part, images[1::2], labels[1::2])
    found = loaded(tmp_path, {"folder": "pngs/"})
    assert torch.equal(found.train.images[..., 0], torch.from_numpy(images[::2].copy()))
    assert torch.equal(found.test.images[..., 0], torch.from_numpy(images[1::2].copy()))
    assert found.train.labels.tolist() == labels[::2].tolist()
    assert found.test.labels.tolist() == labels[1::2].tolist()


def test_one_image_in_colour_makes_all_have_three_channels(tmp_path):
    images, labels = by_class(*digits())
    write_pngs(tmp_path / "pngs", images, labels)
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "pngs" / "class 0" / "00000.png")
    found = loaded(tmp_path, {"folder": "pngs"})
    assert found.shape == (3, 8, 8)
    everything = torch.cat([found.train.images, found.test.images])
    grey = (everything == everything[..., :1]).all(dim=(1, 2, 3))
    assert (~grey).sum() == 1
    assert torch.equal(everything[~grey][0], torch.from_numpy(colours))


def test_images_need_not_be_square(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 256, (40, 6, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=pixels, labels=np.arange(40) % 2)
    found = loaded(
        tmp_path,
        {"npz": "mine.npz"},
        augmentation="crop-flip",
        training={"epochs": 1, "batch_size": 8},
    )
    assert found.shape == (3, 6, 9)
    batch = torch.arange(30) % 2
    padded, rng = data.pad(found.train.images), torch.Generator().manual_seed(0)
    crops = data.augment(padded, batch, "crop-flip", 6, rng)
    assert crops.shape == (30, 6, 9, 3)
    whole = found.train.images[batch]
    views = 0
    for crop, image in zip(crops, whole, strict=True):
        # a pixel that is not black is one of this image's, at its place or mirrored
        seen = {tuple(p) for p in crop.reshape(-1, 3).tolist()} - {(0, 0, 0)}
        assert seen <= {tuple(p) for p in image.reshape(-1, 3).tolist()}
        views += len(seen) > 0
    assert views == 30


# --- torchvision


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def mnist_like(root, name, images, labels):
    """What torchvision's download of a class of MNIST's kin leaves; half of it is the test part."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, which in (("train", slice(0, None, 2)), ("t10k", slice(1, None, 2))):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images[which]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels[which].astype(np.uint8)))


@pytest.mark.parametrize("name", ["KMNIST", "MNIST"])
def test_a_class_of_torchvision(tmp_path, name):
    images, labels = digits()
    mnist_like(tmp_path / "root", name, images, labels)
    found = data.load_for(protocol(tmp_path, {"torchvision": name}), data_dir=tmp_path / "root")
    np.savez(
        tmp_path / "mine.npz",
        **{"x_train": images[::2], "y_train": labels[::2]},
        **{"x_test": images[1::2], "y_test": labels[1::2]},
    )
    assert same(found, loaded(tmp_path, {"npz": "mine.npz"}))


def test_emnist_takes_its_split_as_an_option(tmp_path):
    images, labels = digits()
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, which in (("train", slice(0, None, 2)), ("test", slice(1, None, 2))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.astype(np.uint8))):
            (raw / f"emnist-digits-{part}-{kind}-ubyte").write_bytes(idx(array[which]))
    source = {"torchvision": "EMNIST", "options": {"split": "digits"}}
    found = data.load_for(protocol(tmp_path, source), data_dir=tmp_path)
    assert torch.equal(found.train.images[..., 0], torch.from_numpy(images[::2].copy()))
    assert found.test.labels.tolist() == labels[1::2].tolist()


def test_svhn_whose_parts_are_splits(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    made = {}
    table = dict(torchvision.datasets.SVHN.split_list)
    for split, count in (("train", 40), ("test", 20), ("extra", 70)):
        pixels = rng.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.arange(count)[:, None] % 10 + 1  # 10 stands for 0
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": labels})
        made[split] = pixels.transpose(3, 0, 1, 2)
        table[split] = [*table[split][:2], hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", table)
    small = {"training": {"epochs": 1, "batch_size": 20}}
    for options, training_part in (({}, "train"), ({"split": "extra"}, "extra")):
        source = {"torchvision": "SVHN", "options": options}
        found = data.load_for(protocol(tmp_path, source, **small), data_dir=tmp_path)
        assert np.array_equal(found.train.images, made[training_part])
        assert np.array_equal(found.test.images, made["test"])
        assert (found.classes, found.shape) == (10, (3, 32, 32))


# --- download


def test_any_class_of_torchvision_is_downloaded(monkeypatch, tmp_path):
    asked = []

    def start(self, root, split, train=True, download=False):
        asked.append((root, split, train, download))

    monkeypatch.setattr(torchvision.datasets.EMNIST, "__init__", start)
    command = ["download", "EMNIST", "--data-dir", str(tmp_path), "--option", "split=letters"]
    assert cli.main(command) == 0
    assert asked == [(tmp_path, "letters", train, True) for train in (True, False)]


def test_an_option_is_read_as_in_a_protocol():
    texts = ("small=true", "folds=3", "split=letters", "split='letters'", "a=b=c", "empty=")
    values = [assignment(text) for text in texts]
    assert values == [
        *(("small", True), ("folds", 3), ("split", "letters"), ("split", "letters")),
        *(("a", "b=c"), ("empty", "")),
    ]


# --- function

IMAGES = """
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
labels = np.arange(60) % 3
"""
SMALL = {"training": {"epochs": 1, "batch_size": 8}}


@pytest.mark.parametrize(
    "returns",
    [
        "(images[:40], labels[:40]), (images[40:], labels[40:])",
        "[[images[:40], labels[:40]], [images[40:], labels[40:]]]",
        "{'train': (images[:40], labels[:40]), 'test': (images[40:], labels[40:])}",
        "tuple((torch.from_numpy(images)[i], torch.from_numpy(labels)[i].int())"
        " for i in (slice(40), slice(40, 60)))",
        "(images[:40], labels[:40].tolist()), (images[40:], list(labels[40:]))",
    ],
)
def test_a_function_gives_numpy_or_torch_as_a_pair_or_a_dict(tmp_path, returns):
    reference = function(tmp_path, f"{IMAGES}return {returns}")
    found = loaded(tmp_path, reference, **SMALL)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(
        tmp_path / "mine.npz",
        **{"x_train": pixels[:40], "y_train": labels[:40]},
        **{"x_test": pixels[40:], "y_test": labels[40:]},
    )
    assert same(found, loaded(tmp_path, {"npz": "mine.npz"}, **SMALL))


def test_a_function_is_given_the_data_folder_and_its_options(tmp_path):
    body = """
assert kind == 'some', kind
table = np.load(data_dir / 'table.npy') * scale
return (table[:40], np.arange(40) % 2), (table[40:], np.arange(20) % 2)
"""
    table = np.random.default_rng(0).normal(size=(60, 5))
    np.save(tmp_path / "table.npy", table)
    source = {"function": function(tmp_path, body), "options": {"kind": "some", "scale": 3.0}}
    found = data.load_for(protocol(tmp_path, source, **SMALL), data_dir=tmp_path)
    assert np.array_equal(found.train.images, (3 * table[:40]).astype(np.float32))


def test_float_images_are_normalised_by_channel_as_uint8_ones(tmp_path):
    divided = IMAGES + "images = images / np.float32(255)\n"
    returned = "return (images[:40], labels[:40]), (images[40:], labels[40:])"
    one = loaded(tmp_path, function(tmp_path, IMAGES + returned, "bytes.py"), **SMALL)
    two = loaded(tmp_path, function(tmp_path, divided + returned, "floats.py"), **SMALL)
    assert two.train.images.dtype == torch.float32
    assert one.shape == two.shape == (3, 8, 8)
    x, y = one.normalise(one.train.images), two.normalise(two.train.images)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
    # and are augmented as those are
    crops = [
        data.augment(data.pad(d.train.images), torch.arange(9), "crop-flip", 8, generator)
        for d, generator in ((one, torch.Generator()), (two, torch.Generator()))
    ]
    torch.testing.assert_close(crops[0] / 255, crops[1])


def test_a_table_is_standardised_by_column_with_the_training_part_alone(tmp_path):
    body = """
table = np.random.default_rng(0).normal(size=(60, 5)) * [1, 10, 100, 0, 0] + [0, 5, -3, 0.1, 0]
table[40:, 3] += 1e-3
return (table[:40], np.arange(40) % 2), (table[40:], np.arange(20) % 2)
"""
    found = loaded(tmp_path, function(tmp_path, body), **SMALL, validation=0.25)
    assert (found.shape, found.channels, found.classes) == ((5,), 5, 2)
    x = found.normalise(found.train.images).double()
    assert x.shape == (30, 5)
    varied = x[:, :3]
    torch.testing.assert_close(varied.mean(0), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        varied.std(0, correction=0), torch.ones(3).double(), atol=1e-5, rtol=0
    )
    # constant: divided by 1, and not by 0 or by what rounding leaves of it
    assert torch.equal(x[:, 3:], torch.zeros(30, 2).double())
    assert found.normalise(found.test.images)[:, 3].numpy() == pytest.approx(1e-3, rel=1e-3)


def test_other_floats_are_left_alone(tmp_path):
    body = """
series = np.random.default_rng(0).normal(5, 3, size=(60, 7, 2)).astype(np.float16)
return (series[:40], np.arange(40) % 2), (series[40:], np.arange(20) % 2)
"""
    found = loaded(tmp_path, function(tmp_path, body), **SMALL)
    assert found.shape == (7, 2)
    assert torch.equal(found.normalise(found.train.images), found.train.images)
    assert found.train.images.dtype == torch.float32


def own_loss(folder):
    (folder / "loss.py").write_text("def loss(outputs, targets):\n    return outputs.sum()\n")
    return {"epochs": 1, "batch_size": 8, "loss": "./loss.py:loss"}


@pytest.mark.parametrize("shape", ["40", "40, 2"])
def test_a_regression(tmp_path, shape):
    body = f"""
rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 3)), rng.normal(size=({shape}))
return (x[:30], y[:30]), (x[30:], y[30:])
"""
    found = loaded(
        tmp_path,
        function(tmp_path, body),
        training=own_loss(tmp_path),
        validation=0.2,
        train_examples=20,
    )
    assert found.classes is None
    assert found.train.labels.dtype == torch.float32
    assert [len(getattr(found, name)) for name in PARTS] == [20, 6, 10]
    assert found.train.labels.shape[1:] == ((2,) if "," in shape else ())
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(np.float32), rng.normal(size=eval(f"({shape})"))
    pairs = {tuple(row): target for row, target in zip(x[:30].tolist(), y[:30], strict=True)}
    for part in (found.train, found.validation):  # each input keeps its target
        for row, target in zip(part.images.tolist(), part.labels, strict=True):
            assert np.array_equal(pairs.pop(tuple(row)).astype(np.float32), target)
    # and no noise: there is no wrong class
    assert torch.equal(
        data.noisy_labels(found.train.labels, None, 0.0, torch.Generator()), found.train.labels
    )


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_tokens_reach_the_model_as_they_are(tmp_path, dtype):
    body = f"""
tokens = torch.randint(0, 50, (40, 9), generator=torch.Generator().manual_seed(0))
tokens = tokens.to(torch.{dtype})
return (tokens[:30, :-1], tokens[:30, 1:]), (tokens[30:, :-1], tokens[30:, 1:])
"""
    found = loaded(tmp_path, function(tmp_path, body), training=own_loss(tmp_path), validation=0.2)
    tokens = torch.randint(0, 50, (40, 9), generator=torch.Generator().manual_seed(0))
    assert (found.classes, found.shape) == (None, (8,))
    assert found.train.images.dtype == found.train.labels.dtype == torch.int64
    assert found.normalise(found.test.images) is found.test.images
    assert torch.equal(found.test.images, tokens[30:, :-1])
    assert torch.equal(found.test.labels, tokens[30:, 1:])
    assert [len(getattr(found, name)) for name in PARTS] == [24, 6, 10]
    assert torch.equal(found.train.images[:, 1:], found.train.labels[:, :-1])


@pytest.mark.parametrize(
    "inputs",
    [
        "table.astype('>f8')",
        "table.astype(np.float16)",
        "table.astype(np.longdouble)",
        "table[::-1][::-1]",
        "table.tolist()",
        "torch.from_numpy(table).bfloat16()",
        "torch.from_numpy(table).requires_grad_()",
    ],
)
@pytest.mark.parametrize("targets", ["labels == 1", "labels.astype('>i2')", "labels.astype('u8')"])
def test_whatever_kind_of_numbers(tmp_path, inputs, targets):
    body = f"""
table, labels = np.arange(120).reshape(30, 4) / 2, np.arange(30) % 2
x, y = {inputs}, {targets}
return (x[:20], y[:20]), (x[20:], y[20:])
"""
    found = loaded(tmp_path, function(tmp_path, body), **SMALL)
    expected = (torch.arange(120).reshape(30, 4) / 2)[:20]
    tolerance = 0.01 if "bfloat" in inputs else 0
    torch.testing.assert_close(found.train.images, expected, rtol=tolerance, atol=0)
    assert torch.equal(found.test.labels, torch.arange(20, 30) % 2)


# --- splits and digest


def test_splits_are_stratified(tmp_path):
    labels = np.repeat([0, 1, 2], [200, 40, 20])
    images = np.random.default_rng(0).integers(0, 256, (260, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    found = loaded(tmp_path, {"npz": "mine.npz"}, validation=0.25, train_examples=78)
    counts = [np.bincount(getattr(found, name).labels).tolist() for name in PARTS]
    assert counts == [[60, 12, 6], [40, 8, 4], [40, 8, 4]]


def digest(folder, **arrays):
    np.savez(folder / "mine.npz", **arrays)
    return loaded(folder, {"npz": "mine.npz"}).digest


def test_any_byte_changes_the_digest(tmp_path):
    images, labels = digits()
    arrays = {
        **{"x_train": images[::2], "y_train": labels[::2]},
        **{"x_test": images[1::2], "y_test": labels[1::2]},
    }
    seen = {digest(tmp_path, **arrays)}
    assert digest(tmp_path, **arrays) in seen
    for name, array in arrays.items():
        changed = array.copy()
        changed.flat[-1] = (int(changed.flat[-1]) + 1) % 10
        seen.add(digest(tmp_path, **(arrays | {name: changed})))
    floats = {name: array / 1 for name, array in arrays.items() if name.startswith("x")}
    floats = {name: array[..., None] for name, array in floats.items()}
    seen.add(digest(tmp_path, **(arrays | floats)))
    # the last bit of a float64, which float32 does not hold
    nudged = {name: np.nextafter(array, 99) for name, array in floats.items()}
    seen.add(digest(tmp_path, **(arrays | nudged)))
    single = {name: array.astype(np.float32) for name, array in floats.items()}
    seen.add(digest(tmp_path, **(arrays | single)))
    flat = {name: array.reshape(-1, 64) for name, array in floats.items()}
    seen.add(digest(tmp_path, **(arrays | flat)))
    assert len(seen) == 9


def test_a_changed_file_is_another_key(tmp_path):
    from flatbench.training import identity

    images, labels = digits()
    keys = set()
    for pixel in (0, 1):
        images[5, 0, 0] = pixel
        np.savez(tmp_path / "mine.npz", images=images, labels=labels)
        settings = protocol(tmp_path, {"npz": "mine.npz"})
        (sgd, _) = grid(settings)
        keys.add(identity.key(sgd, data.load_for(settings), [], {}))
    assert len(keys) == 2


def test_the_gzip_of_fashion_mnist_may_be_another(tmp_path):
    """The checksums are of the content: torchvision's and Debian's archives may differ."""
    from flatbench.data import fashion

    if not fashion.DEBIAN.exists():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    for name in fashion.PUBLISHED:
        content = gzip.decompress((fashion.DEBIAN / name).read_bytes())
        (tmp_path / name).write_bytes(gzip.compress(content, compresslevel=0))
    assert data.load(Data("fashion-mnist"), data_dir=tmp_path).digest
