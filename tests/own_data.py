"""The digits in the forms that a data set of one's own may have, and protocols that name them."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from flatbench import data
from tests import tiny


def digits():
    """Images [1797, 8, 8], uint8, and labels."""
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target


def protocol(folder, source, **changes):
    """A tiny protocol beside its data; a change is of a key of [data], or of a whole section."""
    sections = {k: changes.pop(k) for k in ("training", "model", "sharpness") if k in changes}
    return tiny.protocol(
        folder, tiny.table(data={"name": "mine", "source": source, **changes}, **sections)
    )


def loaded(folder, source, **changes):
    return data.load_for(protocol(folder, source, **changes))


def write_pngs(folder, images, labels, mode=None):
    """CLASS/NUMBER.png, the numbers as wide as their order needs."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / f"class {label}" / f"{i:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image, mode).save(path)


def function(folder, body, name="mine.py"):
    """A file whose ``load(data_dir)`` has this body; return the reference to it."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    signature = "def load(data_dir, scale=1.0, kind='all'):\n"
    (folder / name).write_text(f"import numpy as np\nimport torch\n\n\n{signature}{lines}")
    return f"./{name}:load"
