"""Records with made-up numbers, for the tests of what reads records."""

import dataclasses

import numpy as np

from flatbench.records.record import Epoch, Record

MEANS = {"sgd": 88.5, "sgd+sam": 93.1, "adam": 70.3, "adam+sam": 82.9}
PROVENANCE = {
    "common_hash": "0123456789ab",
    "flatbench_version": "0.1.0",
    "commit": "abc1234",
    "dirty": False,
    "python": "3.11.9",
    "torch": "2.9.0",
    "numpy": "2.0.0",
    "device": "a processor",
    "device_kind": "cpu",
    "driver": None,
    "precision": "fp32",
    "threads": 1,
}


def record(
    optimizer="sgd",
    architecture="resnet18",
    seed=0,
    *,
    test_accuracy=90.0,
    sam_sharpness=0.1,
    protocol="digits",
    provenance=None,
    **fields,
):
    """One record; by default a completed one that says where it comes from."""
    status = fields.pop("status", "completed")
    if status != "completed":
        test_accuracy = sam_sharpness = None
        fields.setdefault("reason", f"the loss was not finite in epoch 3 ({status})")
    base, plus, _ = optimizer.rpartition("+")
    cell = {"cell_hash": f"{architecture}-{optimizer}"}
    return Record(
        protocol=protocol,
        architecture=architecture,
        optimizer=optimizer,
        seed=seed,
        base_row=fields.pop("base_row", base if plus else None),
        status=status,
        test_accuracy=test_accuracy,
        sam_sharpness=sam_sharpness,
        provenance=PROVENANCE | cell | (provenance or {}),
        **fields,
    )


def grid(
    seeds=(0, 1, 2),
    *,
    generator=0,
    architectures=("resnet18", "vgg16"),
    means=MEANS,
    spread=1.0,
    epochs=0,
    **fields,
):
    """A grid in which every cell is normal around its row's mean, its sharpness log-normal."""
    random = np.random.default_rng(generator)
    made = []
    for seed in seeds:
        for architecture in architectures:
            for optimizer, mean in means.items():
                accuracy = float(np.clip(random.normal(mean, spread), 0, 100))
                sharpness = float(np.exp(random.normal(-2 - mean / 50, 0.1)))
                twice = 2 if "+" in optimizer else 1
                history = tuple(
                    Epoch(
                        train_loss=2.3 * 0.8**e,
                        train_accuracy=100 * (1 - 0.8 ** (e + 1)),
                        test_loss=2.3 * 0.85**e,
                        test_accuracy=accuracy * (1 - 0.5 ** (e + 1)) / (1 - 0.5**epochs),
                        sam_sharpness=sharpness * 0.9 ** (e + 1 - epochs),
                        learning_rate=0.1,
                        seconds=1.0 * twice,
                        gradient_evaluations=17 * twice,
                    )
                    for e in range(epochs)
                )
                made.append(
                    record(
                        optimizer,
                        architecture,
                        seed,
                        test_accuracy=accuracy,
                        sam_sharpness=sharpness,
                        history=history,
                        gradient_evaluations=17 * twice * epochs,
                        seconds=1.0 * twice * epochs,
                        **fields,
                    )
                )
    return made


def on_both_terms(seeds=6, **changes):
    """A grid with a row of as many gradients as SAM with SGD has, and three kinds of measures.

    SAM is flatter at equal epochs and sharper at equal gradients; with normalised logits it is the
    other way round.
    """
    means = {"sgd": 88.0, "sgd-2x": 88.2, "sgd+sam": 92.0, "adam": 70.0, "adam+sam": 70.5}
    levels = {"sgd": 8.0, "sgd-2x": 1.0, "sgd+sam": 4.0, "adam": 9.0, "adam+sam": 3.0}
    random = np.random.default_rng(3)
    made = []
    for r in grid(range(seeds), means=means, epochs=4):
        value = levels[r.optimizer] * float(np.exp(random.normal(0, 0.05)))
        is_longer = r.optimizer == "sgd-2x"
        fields = {
            "base": r.optimizer.partition("+")[0].removesuffix("-2x"),
            "gradient_evaluations": 136 if "+" in r.optimizer or is_longer else 68,
            "train_accuracy": 95.0,
            "sam_sharpness": value / 100,
            "sharpness": {
                "hessian_max_eigenvalue": value,
                "hessian_max_eigenvalue_normalised": 100 / value,
                "hessian_max_eigenvalue_clean": value,
            },
            "history": r.history * 2 if is_longer else r.history,
        }
        made.append(dataclasses.replace(r, **(fields | changes)))
    return made
