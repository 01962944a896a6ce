"""`flatbench landscape` in process, from a small run of its own."""

import functools
import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from flatbench import cli
from flatbench.landscape import drawing, hessian_spectrum, spectrum
from flatbench.records.reading import read_one
from flatbench.records.store import key_of_weights
from flatbench.report import style
from tests import tiny

IDS = ["tiny/resnet18/sgd/seed0", "tiny/resnet18/sgd+sam/seed0"]
STEMS = ["resnet18-sgd-seed0", "resnet18-sgd+sam-seed0"]
TOGETHER = "--".join(STEMS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectrum")
    sharpness = {
        "rho": 0.05,
        "examples": 24,
        "batchnorm": "train",  # not the default: the spectrum has to follow the protocol
        "at_end": ["hessian_max_eigenvalue"],
    }
    path = tiny.write(folder, tiny.table(sharpness=sharpness))
    common = ["--protocol", str(path), "--results", str(folder), "--device", "cpu"]
    assert cli.main(["run", *common, "--workers", "1", "--keep-weights"]) == 0
    return folder, common


@pytest.fixture
def command(trained, tmp_path, monkeypatch):
    """Draw spectra of few probes into a folder of the test's own; return the exit code."""
    few = functools.partial(hessian_spectrum, probes=2, steps=20)
    monkeypatch.setattr(drawing, "hessian_spectrum", few)

    def run(*arguments, cases=IDS):
        where = ["--output", str(tmp_path), "--directions", "spectrum"]
        return cli.main(["landscape", *cases, *trained[1], *where, *arguments])

    return run


def test_spectra_of_a_pair_and_their_reuse(trained, command, tmp_path, capsys, monkeypatch):
    assert command() == 0
    made = sorted(p.name for p in tmp_path.iterdir())
    figures = [f"{TOGETHER}-spectrum.{form}" for form in ("png", "svg")]
    assert made == sorted([*figures, *(f"{stem}-spectrum.npz" for stem in STEMS)])
    assert sorted(capsys.readouterr().out.split()) == sorted(str(tmp_path / n) for n in made)
    for stem in STEMS:
        found = spectrum.load(tmp_path / f"{stem}-spectrum.npz")
        record = read_one(trained[0] / "tiny" / "records" / f"{stem}.json")
        recorded = record.sharpness["hessian_max_eigenvalue"]
        assert found.ends[1] == pytest.approx(recorded, rel=0.02)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for name in figures:
        (tmp_path / name).unlink()

    def none(*arguments, **options):
        raise AssertionError("a probe has run")

    monkeypatch.setattr(spectrum, "spectral_density", none)
    assert command() == 0
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_figure_tells_the_data_set_and_draws_rows_as_the_report_does(command, monkeypatch):
    seen, draw = {}, drawing.plots.spectrum

    def spy(spectra, **options):
        seen.update(options)
        return draw(spectra, **options)

    monkeypatch.setattr(drawing.plots, "spectrum", spy)
    assert command() == 0
    assert seen["title"] == "digits: loss of training examples"
    rows = ("sgd", "sgd+sam")
    assert seen["looks"] == {f"resnet18, {row}, seed 0": style.look(row) for row in rows}


@pytest.mark.parametrize(
    ("option", "value"), [("--dimensions", "1"), ("--points", "21"), ("--span", "0.5")]
)
def test_options_that_a_spectrum_does_not_have(command, tmp_path, option, value, capsys):
    assert command(option, value) == 2
    expected = f"flatbench: {option} must be left out with --directions spectrum, got {value}\n"
    assert capsys.readouterr() == ("", expected)
    assert list(tmp_path.iterdir()) == []


def test_cases_and_seeds_that_are_wrong(command, capsys):
    for cases, options, says in [
        ([IDS[0]] * 2, [], "a case is given more than once"),
        ([f"tiny/resnet18/sgd/seed{i}" for i in range(5)], [], "cases must be 1 to 4, got 5"),
        (IDS, ["--seed", "-1"], "--seed must be a whole number of at least 0, got -1"),
        (["tiny/resnet18/sgd/seed7"], [], "run --keep-weights"),
    ]:
        assert command(*options, cases=cases) == 2
        error = capsys.readouterr().err
        assert says in error
        assert len(error.splitlines()) == 1


def test_a_file_that_is_damaged_or_of_another_seed(command, tmp_path, capsys):
    path = tmp_path / f"{STEMS[0]}-spectrum.npz"
    path.write_bytes(b"PK damaged")
    assert command(cases=IDS[:1]) == 2
    assert capsys.readouterr().err.startswith(f"flatbench: {path}: is not an .npz file")
    path.unlink()
    assert command(cases=IDS[:1]) == 0
    capsys.readouterr()
    assert command("--seed", "1", cases=IDS[:1]) == 2
    error = f"flatbench: {path}: seed must be 1 to go on with this file, got 0\n"
    assert capsys.readouterr() == ("", error)


@pytest.mark.parametrize("kind", ["spectrum", "hessian"])
def test_a_hessian_that_is_not_finite_is_one_line(command, kind, monkeypatch, capsys):
    from flatbench.sharpness import HessianProducts

    monkeypatch.setattr(HessianProducts, "__call__", lambda hessian, vectors: vectors * np.nan)
    assert command("--directions", kind, cases=IDS[:1]) == 2
    says = f"flatbench: {IDS[0]}: the Hessian at the model's weights is not finite\n"
    assert capsys.readouterr() == ("", says)


def test_a_line_of_two_dimensions_and_a_run_that_did_not_complete(command, trained, capsys):
    assert command("--directions", "line", "--dimensions", "2") == 2
    says = "--dimensions must be 1 with --directions line, got 2"
    assert capsys.readouterr().err == f"flatbench: {says}\n"
    path = trained[0] / "tiny" / "records" / f"{STEMS[0]}.json"
    whole = path.read_text()
    try:
        path.write_text(json.dumps(json.loads(whole) | {"status": "diverged", "reason": "x"}))
        assert command(cases=IDS[:1]) == 2
        assert 'status must be "completed", got "diverged"' in capsys.readouterr().err
    finally:
        path.write_text(whole)


def with_key(path, key):
    """Return a file of weights with another run's key, or with none."""
    with safe_open(path, "numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return save(tensors, None if key is None else {"key": key})


def test_weights_of_another_run_than_the_record_are_refused(command, trained, capsys):
    path = trained[0] / "tiny" / "records" / f"{STEMS[0]}.safetensors"
    key = read_one(path.with_suffix(".json")).provenance["key"]
    whole = path.read_bytes()
    assert key_of_weights(path) == key
    try:
        path.write_bytes(with_key(path, "another"))
        assert command(cases=IDS[:1]) == 2
        error = (
            f'flatbench: {path}: key must be "{key}", the record\'s, got "another": '
            "the weights are of another run; train the case again with --keep-weights\n"
        )
        assert capsys.readouterr() == ("", error)
        path.write_bytes(with_key(path, None))  # as the first versions wrote them
        with pytest.warns(RuntimeWarning, match=r"safetensors: has no run's key"):
            assert command(cases=IDS[:1]) == 0
    finally:
        path.write_bytes(whole)
