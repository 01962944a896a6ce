"""A slice's file: what was evaluated is kept, and another slice's file is refused."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from flatbench.errors import UsageError
from flatbench.landscape import (
    Landscape,
    hessian_directions,
    line_direction,
    load,
    save,
)
from flatbench.sharpness import loss_surface
from tests.landscapes import conv_net, images, interrupted, run


def test_an_interrupted_grid_goes_on_where_it_stopped(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    whole = run(model, None)
    loss, _ = interrupted(after=5)
    with pytest.raises(KeyboardInterrupt):
        run(model, path, loss)
    partial = load(path)
    assert int(partial.done.sum()) == 5
    assert not partial.complete
    assert np.isnan(partial.losses[~partial.done]).all()
    loss, calls = interrupted(after=100)
    resumed = run(model, path, loss)
    assert len(calls) == 12 - 5
    np.testing.assert_array_equal(resumed.losses, whole.losses)  # bit for bit
    np.testing.assert_array_equal(load(path).losses, whole.losses)
    loss, calls = interrupted(after=0)
    again = run(model, path, loss)  # nothing is left to do
    np.testing.assert_array_equal(again.losses, whole.losses)


def test_values_are_kept_as_they_come(tmp_path):
    model, path, seen = conv_net(), tmp_path / "grid.npz", []

    def on_point(done, total):
        assert int(load(path).done.sum()) == done  # save_every=0: after each point
        seen.append((done, total))

    run(model, path, save_every=0, on_point=on_point)
    assert seen == [(i, 12) for i in range(1, 13)]
    assert [p.name for p in tmp_path.iterdir()] == ["grid.npz"]  # no temporary file is left


def test_a_nan_that_was_evaluated_is_not_evaluated_again(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    result = run(model, path, lambda o, t: cross_entropy(o, t) * torch.nan)
    assert np.isnan(result.losses).all()
    loss, calls = interrupted(after=0)
    assert run(model, path, loss).complete
    assert not calls


def test_a_file_of_something_else_is_refused(tmp_path):
    model, path = conv_net(), tmp_path / "grid.npz"
    run(model, path)
    before = path.read_bytes()
    for field, changes in {
        "seed must be 1 to go on with this file, got 0": {"seed": 1},
        "alphas must be 4 points from -1 to 3 to go on with this file, got 4 points from -1 to 2": {
            "alphas": [-1, 0, 1, 3]
        },
        "betas": {"betas": [0, 1, 2, 3]},
        "betas must be 0 points to go on with this file, got 3 points from 0 to 2": {"betas": None},
        "batchnorm must be 'train, batches of 12' to go on with this file, got 'eval'": {
            "batchnorm": "train"
        },
        "examples": {"x": images()[0] + 1},
        "kind must be 'hessian' to go on with this file, got 'random'": {
            "directions": hessian_directions(
                loss_surface(model, cross_entropy, *images()), tolerance=0.1
            )
        },
    }.items():
        with pytest.raises(UsageError, match=f"grid.npz: {field}"):
            run(model, path, **changes)
    with pytest.raises(UsageError, match=r"grid\.npz: weights must be '"):
        run(conv_net(seed=1), path)
    assert path.read_bytes() == before


def test_another_end_of_the_line_or_another_eigenvector_is_refused(tmp_path):
    model, path = conv_net(), tmp_path / "line.npz"
    one, two = (line_direction(model, conv_net(seed=s).state_dict()) for s in (1, 2))
    run(model, path, directions=one, betas=None)
    assert load(path).seed is None
    with pytest.raises(UsageError, match=r"line.npz: source must be"):
        run(model, path, directions=two, betas=None)


def test_a_landscape_survives_its_file(tmp_path):
    result = run(conv_net(), None)
    save(result, tmp_path / "a.npz")
    found = load(tmp_path / "a.npz")
    for name in Landscape.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(result, name))
    assert isinstance(found.seed, int)
    with np.load(tmp_path / "a.npz") as arrays:  # plain numpy reads it
        assert arrays["seed"] == [0]
        assert arrays["losses"].shape == (4, 3)


def test_files_that_are_not_landscapes(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(UsageError, match=r"a\.npz: cannot be read: No such file"):
        load(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(UsageError, match=r"a\.npz: is not an \.npz file"):
        load(path)
    save(run(conv_net(), None), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"a\.npz: is not an \.npz file"):
        load(path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"a\.npz: is not an \.npz file"):
        load(path)
    np.save(tmp_path / "b.npy", np.zeros(3))
    with pytest.raises(UsageError, match=r"b\.npy: is not an \.npz file"):
        load(tmp_path / "b.npy")
    np.savez(path, losses=np.zeros(3))
    with pytest.raises(
        UsageError, match=r"a\.npz: format must be 'flatbench landscape 1', got 'None'"
    ):
        load(path)
    np.savez(path, losses=np.array([object()], dtype=object))
    with pytest.raises(UsageError, match=r"a\.npz: losses: cannot be read: ValueError: Object"):
        load(path)
    for change, message in [
        ({"kind": None}, "must have an array named 'kind', got none"),
        (
            {"losses": np.zeros((2, 2))},
            r"losses and done must have the shape \(4, 3\) .*, got \(2, 2\)",
        ),
        ({"done": np.zeros((4, 3))}, "losses"),
    ]:
        path.write_bytes(whole)
        with np.load(path) as file:
            arrays = dict(file) | change
        np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
        with pytest.raises(UsageError, match=f"a.npz: {message}"):
            load(path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FileExistsError, match="/file'"):
        save(run(conv_net(), None), tmp_path / "file" / "a.npz")
