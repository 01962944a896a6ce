"""A protocol that trains in a second, as a table for tests to change and write as TOML."""

import json

from flatbench.protocols.reading import load

SGD = {"base": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
ADAM = {"base": "adam", "lr": 0.002, "weight_decay": 5e-4}


def table(**changes):
    """The protocol's table; a change is of a whole section, or None to leave it out."""
    whole = {
        "seeds": [0],
        "data": {"name": "digits", "label_noise": 0.4, "train_examples": 200},
        "training": {"epochs": 2, "batch_size": 64},
        "model": {"width": 4, "architectures": ["resnet18"]},
        "optimizers": {"sgd": dict(SGD), "sgd+sam": {**SGD, "rho": 0.05}},
    }
    return {key: value for key, value in (whole | changes).items() if value is not None}


def toml(whole):
    return "".join(f"{_string(key)} = {_inline(value)}\n" for key, value in whole.items())


def _inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_string(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return _string(value) if isinstance(value, str) else repr(value)


def _string(text):
    # JSON's strings are TOML's, but for DEL
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write(folder, whole=None, name="tiny"):
    path = folder / f"{name}.toml"
    path.write_text(toml(table() if whole is None else whole), encoding="utf-8")
    return path


def protocol(folder, whole=None, name="tiny"):
    return load(str(write(folder, whole, name)))
