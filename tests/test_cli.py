"""The command line: quick where it can be, one line and exit 2 where the input is unusable."""

import argparse
import re
import shutil
import subprocess
import sys

import pytest

from flatbench import cli, files, options
from flatbench.protocols.reading import available
from flatbench.records import reading
from tests import tiny
from tests.synthetic import MEANS, grid


@pytest.mark.parametrize("arguments", [["list"], ["list", "--protocol", "digits"], ["--help"]])
def test_listing_and_help_import_neither_torch_nor_pandas(arguments):
    code = (
        "import sys\n"
        "from flatbench.cli import main\n"
        "try:\n"
        "    code = main(sys.argv[1:])\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = {'torch', 'pandas', 'scipy', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_list_names_protocols_and_cases(capsys):
    assert cli.main(["list"]) == 0
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()] == list(available())
    assert cli.main(["list", "--protocol", "digits", "--seeds", "3", "--optimizers", "sgd"]) == 0
    assert capsys.readouterr().out.split() == [
        "digits/resnet18/sgd/seed3",
        "digits/vgg16/sgd/seed3",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0,)), ("0,1,2", (0, 1, 2)), ("3-5", (3, 4, 5)), ("7,1-2", (7, 1, 2))],
)
def test_seeds(text, expected):
    assert options.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0", "-1", "100", "nan", "inf"])
def test_points_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a number between 0 and 100"):
        options.points(text)


@pytest.mark.parametrize("text", ["", "a", "1,", "5-3", "-1", "1.5", "1--2", "²"])
def test_seeds_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be a list such as"):
        options.seeds(text)


@pytest.mark.parametrize("text", ["9" * 19, "0-" + "9" * 19, "9" * 5000])
def test_numbers_that_have_no_place_in_64_bits(text):
    for parse in (options.seeds, options.count, options.natural):
        with pytest.raises(argparse.ArgumentTypeError, match="of at most 18 digits, got '"):
            parse(text)
    assert options.natural("9" * 18) < 2**63


def test_more_seeds_than_anybody_trains():
    """Each is a case for every row: they would fill the memory before anything trains."""
    said = "must be at most 10,000 seeds, got 100,000,001"
    with pytest.raises(argparse.ArgumentTypeError, match=said):
        options.seeds("0-99999999,7")
    assert len(options.seeds("0-9999")) == 10_000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--protocol", "digit"], "the path of a .toml file, got 'digit'"),
        (["list", "--protocol", "digits", "--optimizers", "a"], "for protocol 'digits', got 'a'"),
        (["run", "--device", "tpu"], "--device must be cpu, cuda, cuda:N or auto, got 'tpu'"),
        (["run", "--workers", "0"], "--workers: must be a whole number of at least 1, got '0'"),
        (
            ["run", "--wrokers", "2"],
            "--wrokers 2 (did you mean '--workers'?); see flatbench --help",
        ),
        (  # an option of other commands alone
            ["sharpness", "--weights", "w.pt", "--architectures", "vgg16"],
            "--architectures vgg16 (did you mean '--architecture'?); see flatbench --help",
        ),
        (["runn"], "(did you mean 'run'?); see flatbench --help"),
        (["list", "--seeds", "5-3"], "must be a list such as 0,1,2 or 0-9, got '5-3'"),
        (["report", "/nowhere"], "/nowhere: no such file or folder"),
        (["baseline", "/nowhere", "--output", "x.toml"], "/nowhere: no such file or folder"),
        (["compare", "/nowhere", "/nowhere"], "/nowhere: no such file or folder"),
        (["compare", "/nowhere.toml", "/nowhere"], "/nowhere.toml: cannot be read"),
        (["landscape", "digits/sgd/seed0"], "case must be PROTOCOL/ARCHITECTURE/OPTIMIZER/seedN"),
        (["landscape", "digits/vgg16/sgdd/seed0"], "for protocol 'digits', got 'sgdd'"),
        (["landscape", "a/vgg16/sgd/seed0", "--protocol", "digits"], "is named 'digits'"),
        (["landscape", "digits/vgg16/sgd/seed0", "--results", "/nowhere"], "run --keep-weights"),
        (["landscape", *["digits/vgg16/sgd/seed0"] * 2], "a case is given more than once"),
        (
            ["landscape", *(f"digits/vgg16/sgd/seed{i}" for i in range(4))],
            "cases must be 1 to 3, got 4",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--directions", "line"],
            "cases must be two of one protocol and architecture, got digits/vgg16/sgd/seed0",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--points", "1"],
            "--points must be a whole number of at least 2, got 1",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--points", "1001"],
            "--points must be at most 1,000,000 in all, got 1,001 along each axis",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--points", "1000000001", "--dimensions", "1"],
            "--points must be at most 1,000,000 in all, got 1,000,000,001",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--span", "1e308"],
            "--span must be a number above 0, at most 1,000,000, got 1e+308",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--span", "nan"],
            "--span must be a number above 0, at most 1,000,000, got nan",
        ),
        (
            ["landscape", "digits/vgg16/sgd/seed0", "--seed", "-1"],
            "--seed must be a whole number of at least 0, got -1",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(arguments, says, capsys):
    assert cli.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert error.startswith("flatbench: ")
    assert says in error


def test_a_damaged_record_is_named_and_nothing_is_written(tmp_path, capsys):
    (tmp_path / "a.json").write_text('{"schema_version": 1, "protocol": ')
    output = tmp_path / "report.md"
    assert cli.main(["report", str(tmp_path), "--output", str(output)]) == 2
    assert f"{tmp_path / 'a.json'}: is not JSON" in capsys.readouterr().err
    assert not output.exists()


def test_run_report_and_exit_codes(tmp_path, capsys):
    rows = {"sgd": tiny.SGD, "wild": {"base": "sgd", "lr": 1e30}}
    path = tiny.write(tmp_path, tiny.table(optimizers=rows))
    common = ["--protocol", str(path), "--results", str(tmp_path), "--device", "cpu"]
    assert cli.main(["run", *common, "--workers", "1"]) == 1  # one of the two diverges
    out = capsys.readouterr().out
    assert "tiny/resnet18/wild/seed0: diverged in epoch 1 of 2" in out
    found = {r.optimizer: r for r in reading.collect([tmp_path / "tiny" / "records"])}
    assert f"tiny/resnet18/sgd/seed0: {found['sgd'].test_accuracy:.2f} %" in out
    assert found["wild"].status == "diverged"
    assert out.endswith(
        f"records: {tmp_path / 'tiny' / 'records'}\nnext: flatbench report {tmp_path / 'tiny'}\n"
    )
    (tmp_path / "tiny" / "benchmark.json").write_text("not read: its records are in the folder")
    assert cli.main(["report", str(tmp_path / "tiny")]) == 0
    assert "### Test accuracy (%)" in capsys.readouterr().out


def test_finished_cases_are_taken_as_they_are_unless_fresh_is_asked_for(tmp_path, capsys):
    path = tiny.write(tmp_path, tiny.table(optimizers={"sgd": tiny.SGD}))
    common = ["run", "--protocol", str(path), "--results", str(tmp_path), "--device", "cpu"]
    record = tmp_path / "tiny" / "records" / "resnet18-sgd-seed0.json"
    said = []
    for more in ([], [], ["--fresh"]):
        assert cli.main([*common, *more]) == 0
        said.append((capsys.readouterr().out.splitlines()[0], record.stat().st_mtime_ns))
    (first, t1), (again, t2), (fresh, t3) = said
    assert again == f"{first} (finished before, not trained again)"
    assert fresh == first
    assert t1 == t2 < t3


def test_a_change_of_the_protocol_trains_again(tmp_path, capsys):
    for lr in (0.05, 0.04):
        path = tiny.write(tmp_path, tiny.table(optimizers={"sgd": {**tiny.SGD, "lr": lr}}))
        arguments = ["--protocol", str(path), "--results", str(tmp_path), "--device", "cpu"]
        assert cli.main(["run", *arguments]) == 0
        assert "finished before" not in capsys.readouterr().out


def test_an_edit_of_a_rows_code_trains_that_row_again(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("from torch.optim import SGD as Mine\n")
    rows = {"sgd": tiny.SGD, "mine": {"optimizer": "./mine.py:Mine", "options": {"lr": 0.05}}}
    path = tiny.write(tmp_path, tiny.table(optimizers=rows))
    arguments = ["--protocol", str(path), "--results", str(tmp_path), "--device", "cpu"]
    assert cli.main(["run", *arguments]) == 0
    with (tmp_path / "mine.py").open("a") as file:
        file.write("# edited\n")
    capsys.readouterr()
    assert cli.main(["run", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()[:2]
    assert ["finished before" in line for line in said] == [True, False]


@pytest.mark.parametrize(
    ("name", "begins"), [("a.html", "<!doctype html>"), ("a.tex", "%"), ("a.md", "## Protocol")]
)
def test_the_ending_of_the_output_chooses_the_format(tmp_path, name, begins):
    write(tmp_path, grid(range(2)))
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_text().lstrip().startswith(begins)


def test_an_ending_that_is_no_format(tmp_path, capsys):
    write(tmp_path, grid(range(2)))
    assert cli.main(["report", str(tmp_path), "--output", "a.pdf"]) == 2
    assert "--output must end in one of .md, .markdown, .html" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m flatbench list --protocol digits --seeds 0-4999 | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert done.stdout == "digits/resnet18/sgd/seed0\n"
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", list(cli.EXAMPLES))
def test_each_command_has_an_example_that_it_would_take(name, capsys):
    parser = cli._parser()
    assert cli.EXAMPLES[name].split()[:2] == ["flatbench", name]
    assert parser.parse_args(cli.EXAMPLES[name].split()[1:]).command is not None
    with pytest.raises(SystemExit):
        parser.parse_args([name, "--help"])
    assert cli.EXAMPLES[name] in capsys.readouterr().out
    assert set(cli.EXAMPLES) == {command.prog.split()[-1] for command in parser.commands}


def test_baseline_packs_records_into_one_file(tmp_path, capsys):
    write(tmp_path / "records", grid(range(3)))
    output = tmp_path / "mine.baseline.json.gz"
    pack = ["baseline", *[str(tmp_path / "records")] * 2, "--output", str(output)]
    assert cli.main(pack) == 0
    found = reading.read(output)  # each case once, though it was given twice
    assert sorted(r.id for r in found) == sorted(r.id for r in grid(range(3)))
    assert cli.main(["compare", str(output), str(tmp_path / "records")]) == 0
    before = output.read_bytes()
    assert cli.main([*pack, "--grid-seeds", "3"]) == 2
    said = "--grid-seeds must be left out where --output ends in .json.gz"
    assert said in capsys.readouterr().err
    assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "--baseline must have one of the cells resnet18/sgd, resnet18/sgd+sam"),
        (
            {"training": {"epochs": 3, "batch_size": 8}},
            "--baseline must be of protocol tiny with",
        ),
    ],
)
def test_a_baseline_that_holds_nothing_is_refused_before_the_gate_trains(
    tmp_path, monkeypatch, capsys, changes, says
):
    from flatbench import execution

    monkeypatch.setattr(execution, "start", lambda *_: pytest.fail("it trains"))
    content = tiny.protocol(tmp_path, tiny.table(**changes)).common_hash()
    known = grid(range(3), protocol="tiny", provenance={"common_hash": content}, means={"adam": 70})
    write(tmp_path / "records", known)
    tiny.write(tmp_path)
    command = ["gate", "--protocol", str(tmp_path / "tiny.toml"), "--results", str(tmp_path / "x")]
    assert cli.main([*command, "--baseline", str(tmp_path / "records")]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_baseline_writes_thresholds(tmp_path, capsys):
    from flatbench import gate

    write(tmp_path, grid(range(10)))
    output = tmp_path / "thresholds.toml"
    assert cli.main(["baseline", str(tmp_path), "--output", str(output), "--level", "0.99"]) == 0
    assert gate.read_thresholds(output).level == 0.99
    chosen = ["--measures", "test_accuracy"]
    assert cli.main(["baseline", str(tmp_path), "--output", str(output), *chosen]) == 0
    cells = gate.read_thresholds(output).cells.values()
    assert all(list(cell.bounds) == ["test_accuracy"] for cell in cells)
    assert gate.read_thresholds(output).grid_seeds == 3
    more = ["--grid-seeds", "6"]
    assert cli.main(["baseline", str(tmp_path), "--output", str(output), *more]) == 0
    assert gate.read_thresholds(output).grid_seeds == 6
    refused = ["baseline", "--reference", "cifar10-paper", "--output", str(output), *more]
    assert cli.main(refused) == 2
    none = ["baseline", str(tmp_path), "--output", str(output), "--grid-seeds", "0"]
    assert cli.main(none) == 2  # and is not taken for the default
    assert "must be a whole number of at least 1, got '0'" in capsys.readouterr().err


def write(folder, records):
    for r in records:
        files.write_json(folder / f"{r.id.replace('/', '-')}.json", r.to_json())
    return folder


def test_compare_exits_0_or_1_and_reports_where_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "github.md"))
    baseline = write(tmp_path / "baseline", grid(range(10)))
    same = write(tmp_path / "same", grid(range(3), generator=3))
    worse = write(tmp_path / "worse", grid(range(3), means=MEANS | {"adam": 50.0}))
    assert cli.main(["compare", str(baseline), str(same)]) == 0
    said = capsys.readouterr().out
    assert "pass: none of 16 checks failed" in said.splitlines()[-1]
    assert "digits/vgg16/adam: test_accuracy" in said  # with what it was, is, may be, and finds
    power = ["compare", str(baseline), str(same), "--require-power"]
    assert cli.main([*power, "20"]) == 0
    assert cli.main([*power, "2"]) == 1
    assert "the check is too weak: it finds a drop of" in capsys.readouterr().out
    summary = tmp_path / "summary.md"
    assert cli.main(["compare", str(baseline), str(worse), "--summary", str(summary)]) == 1
    assert "FAILED digits/vgg16/adam: test_accuracy" in capsys.readouterr().out
    assert summary.read_text().splitlines()[0] in (tmp_path / "github.md").read_text()
    # a hair's breadth of alarms lets the limits out so far that nothing crosses them
    assert cli.main(["compare", str(baseline), str(worse), "--alarm", "1e-12"]) == 0


def test_report_writes_its_figures(tmp_path):
    records = write(tmp_path / "records", grid([0], epochs=3, architectures=("resnet18",)))
    assert cli.main(["report", str(records), "--figures", str(tmp_path / "figures")]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"digits-{name}.{suffix}"
        for name in (
            *("gains", "outcome-sam_sharpness", "cost", "price"),
            *("test_accuracy", "sam_sharpness"),
        )
        for suffix in ("png", "svg")
    }


def test_a_report_in_a_file_links_the_figures_from_where_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = write(tmp_path / "records", grid([0], architectures=("resnet18",)))
    to = ["--output", "results/report.md", "--figures", "drawn"]
    assert cli.main(["report", str(records), *to]) == 0
    text = (tmp_path / "results" / "report.md").read_text()
    links = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(links) >= 1
    assert all((tmp_path / "results" / link).exists() for link in links)


def test_report_takes_a_target(tmp_path, capsys):
    records = write(tmp_path / "records", grid(epochs=3))
    assert cli.main(["report", str(records), "--target", "60"]) == 0
    assert "The target was given by the user." in capsys.readouterr().out
    assert cli.main(["report", str(records), "--target", "101"]) == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape")
    path = tiny.write(folder)
    common = ["--protocol", str(path), "--results", str(folder), "--device", "cpu"]
    assert cli.main(["run", *common, "--workers", "1", "--keep-weights"]) == 0
    return path, folder


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        (["--points", "3"], ["random-2d-contour", "random-2d-surface"]),
        (["--points", "3", "--dimensions", "1"], ["random-1d-lines"]),
        (
            ["--points", "3", "--directions", "hessian"],
            ["hessian-2d-contour", "hessian-2d-surface"],
        ),
        (["--points", "4", "--directions", "line"], ["line-1d-lines"]),
    ],
)
def test_landscapes_of_a_pair(trained, options, kinds):
    path, folder = trained
    ids = ["tiny/resnet18/sgd/seed0", "tiny/resnet18/sgd+sam/seed0"]
    common = ["--protocol", str(path), "--results", str(folder), "--device", "cpu"]
    assert cli.main(["landscape", *ids, *common, *options]) == 0
    together = "resnet18-sgd-seed0--resnet18-sgd+sam-seed0"
    for kind in kinds:
        for suffix in ("png", "svg"):
            assert (folder / "tiny" / "landscapes" / f"{together}-{kind}.{suffix}").exists()


def test_the_centre_of_a_landscape_is_the_trained_network(trained):
    """The loss in the middle is what the recorded weights have on the case's own examples."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from flatbench import data, models
    from flatbench.protocols.cases import from_id
    from flatbench.training import measuring, setup

    path, folder = trained
    case = "tiny/resnet18/sgd+sam/seed0"
    common = ["--protocol", str(path), "--results", str(folder), "--device", "cpu"]
    assert cli.main(["landscape", case, *common, "--points", "3", "--dimensions", "1"]) == 0
    stem = "resnet18-sgd+sam-seed0"
    with np.load(folder / "tiny" / "landscapes" / f"{stem}-random-1d.npz") as found:
        middle = float(found["losses"][1])
    model = models.build("resnet18", width=4, in_channels=1, classes=10)
    model.load_state_dict(load_file(folder / "tiny" / "records" / f"{stem}.safetensors"))
    run = from_id(case, str(path))
    dataset = data.load(run.protocol.data)
    picked = measuring.examples(dataset, run.protocol.sharpness)
    labels = setup.training_labels(run, dataset)
    assert not torch.equal(labels, dataset.train.labels)
    with torch.no_grad():
        logits = model.eval()(dataset.normalise(dataset.train.images[picked]))
    expected = torch.nn.functional.cross_entropy(logits, labels[picked])
    assert middle == pytest.approx(float(expected), rel=1e-5)


def test_weights_of_another_protocol_or_damaged_are_refused(trained, tmp_path, capsys):
    _, folder = trained
    case = "tiny/resnet18/sgd/seed0"
    changed = tiny.write(tmp_path, tiny.table(training={"epochs": 3, "batch_size": 64}))
    where = ["--protocol", str(changed), "--results", str(folder), "--device", "cpu"]
    assert cli.main(["landscape", case, *where]) == 2
    assert "the protocol has changed since" in capsys.readouterr().err
    own = tiny.write(tmp_path)
    store = tmp_path / "tiny" / "records"
    shutil.copytree(folder / "tiny" / "records", store)
    weights = store / "resnet18-sgd-seed0.safetensors"
    for content in (b"", weights.read_bytes()[:-9]):
        weights.write_bytes(content)
        where = ["--protocol", str(own), "--results", str(tmp_path), "--device", "cpu"]
        assert cli.main(["landscape", case, *where]) == 2
        error = capsys.readouterr().err
        assert "are not the weights of tiny/resnet18/sgd/seed0" in error
        assert len(error.splitlines()) == 1
