"""The grid: which cases, in which order, under which ids, and what a wrong selection says."""

import pytest

from flatbench.errors import UsageError
from flatbench.protocols.cases import grid
from tests import tiny


@pytest.fixture
def settings(tmp_path):
    whole = tiny.table(
        seeds=[5, 0],
        model={"width": 4, "architectures": ["vgg16", "resnet18"]},
        optimizers={"adam": tiny.ADAM, "sgd": tiny.SGD, "sgd+sam": {**tiny.SGD, "rho": 0.05}},
    )
    whole["optimizers"]["sgd"] = {**tiny.SGD, "epochs": 9, "architectures": {"vgg16": {"lr": 1}}}
    return tiny.protocol(tmp_path, whole)


def ids(cases):
    return [case.id.removeprefix("tiny/") for case in cases]


def test_the_whole_grid_in_the_order_of_the_file_seed_by_seed(settings):
    assert [case.id for case in grid(settings)] == [
        "tiny/vgg16/adam/seed5",
        "tiny/vgg16/sgd/seed5",
        "tiny/vgg16/sgd+sam/seed5",
        "tiny/resnet18/adam/seed5",
        "tiny/resnet18/sgd/seed5",
        "tiny/resnet18/sgd+sam/seed5",
        "tiny/vgg16/adam/seed0",
        "tiny/vgg16/sgd/seed0",
        "tiny/vgg16/sgd+sam/seed0",
        "tiny/resnet18/adam/seed0",
        "tiny/resnet18/sgd/seed0",
        "tiny/resnet18/sgd+sam/seed0",
    ]


def test_a_selection_in_its_own_order(settings):
    assert ids(grid(settings, ["resnet18"], ["sgd+sam", "adam"], [9])) == [
        "resnet18/sgd+sam/seed9",
        "resnet18/adam/seed9",
    ]
    assert ids(grid(settings, optimizers=["sgd"], seeds=[1, 0])) == [
        "vgg16/sgd/seed1",
        "resnet18/sgd/seed1",
        "vgg16/sgd/seed0",
        "resnet18/sgd/seed0",
    ]
    assert len(grid(settings, architectures=["vgg16"])) == 6


def test_a_case_runs_its_row_as_its_architecture_overrides_it(settings):
    on_vgg, on_resnet = grid(settings, optimizers=["sgd"], seeds=[0])
    assert (on_vgg.row.lr, on_resnet.row.lr) == (1.0, 0.05)
    assert (on_vgg.epochs, on_resnet.epochs) == (9, 9)
    assert grid(settings, optimizers=["adam"])[0].epochs == 2  # the protocol's
    assert on_vgg.cell_hash() == settings.cell_hash("sgd", "vgg16")


def test_seeds_of_one_cell_share_its_hash(settings):
    assert len({case.cell_hash() for case in grid(settings)}) == 6
    cell = grid(settings, ["vgg16"], ["adam"], range(4))
    assert len({case.cell_hash() for case in cell}) == 1


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (
            {"architectures": ["vgg16", "vgg19"]},
            "--architectures must be among vgg16, resnet18 for protocol 'tiny', got 'vgg19' "
            "(did you mean 'vgg16'?)",
        ),
        (
            {"optimizers": ["sgd+asm"]},
            "--optimizers must be among adam, sgd, sgd+sam for protocol 'tiny', got 'sgd+asm' "
            "(did you mean 'sgd+sam'?)",
        ),
        ({"optimizers": ["sgd", "adam", "sgd"]}, "--optimizers: sgd is given more than once"),
        ({"seeds": [0, 1, 0]}, "--seeds: 0 is given more than once"),
        ({"architectures": ["vgg16"] * 2}, "--architectures: vgg16 is given more than once"),
    ],
)
def test_a_wrong_selection_is_one_line(settings, selection, expected):
    with pytest.raises(UsageError) as caught:
        grid(settings, **selection)
    assert str(caught.value) == expected
