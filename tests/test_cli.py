"""The command line: quick where it can be, one line and exit 2 where the input is unusable."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from flatbench import cli, protocol, record
from tests import tiny
from tests.synthetic import grid


@pytest.mark.parametrize("arguments", [["list"], ["list", "--protocol", "digits"], ["--help"]])
def test_listing_and_help_import_neither_torch_nor_pandas(arguments: list[str]) -> None:
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


def test_list_names_protocols_and_cases(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    assert [x.split()[0] for x in capsys.readouterr().out.splitlines()] == list(
        protocol.available()
    )
    assert cli.main(["list", "--protocol", "digits", "--seeds", "3", "--optimizers", "sgd"]) == 0
    assert capsys.readouterr().out.split() == [
        "digits/resnet18/sgd/seed3",
        "digits/vgg16/sgd/seed3",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0,)), ("0,1,2", (0, 1, 2)), ("3-5", (3, 4, 5)), ("7,1-2", (7, 1, 2))],
)
def test_seeds(text: str, expected: tuple[int, ...]) -> None:
    assert cli.seeds(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,", "5-3", "-1", "1.5", "1--2", "²"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="allowed is a list such as"):
        cli.seeds(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--protocol", "digit"], "protocol 'digit' is unknown; allowed: "),
        (["list", "--protocol", "digits", "--optimizers", "sgdd"], "has no 'sgdd'; allowed: sgd"),
        (["run", "--device", "tpu"], "--device = 'tpu': allowed is cpu, cuda, cuda:N or auto"),
        (["run", "--workers", "0"], "--workers = 0: allowed is a whole number of at least 1"),
        (["report", "/nowhere"], "/nowhere: no such file or folder"),
        (["baseline", "/nowhere", "--output", "x.toml"], "/nowhere: no such file or folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert error.startswith("flatbench: ")
    assert says in error


def test_a_damaged_record_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text('{"schema_version": 1, "protocol": ')
    output = tmp_path / "report.md"
    assert cli.main(["report", str(tmp_path), "--output", str(output)]) == 2
    assert f"{tmp_path / 'a.json'}: is not JSON" in capsys.readouterr().err
    assert not output.exists()


def test_run_report_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"sgd": tiny.SGD, "wild": {"base": "sgd", "lr": 1e30}}
    path = tiny.write(tmp_path, tiny.table(optimizers=rows))
    common = ["--protocol", str(path), "--results", str(tmp_path), "--device", "cpu"]
    assert cli.main(["run", *common, "--workers", "1"]) == 1  # one of the two diverges
    out = capsys.readouterr().out
    assert "tiny/resnet18/wild/seed0: diverged in epoch 1 of 2" in out
    found = {r.optimizer: r for r in record.collect([tmp_path / "tiny" / "records"])}
    assert f"tiny/resnet18/sgd/seed0: {found['sgd'].test_accuracy:.2f} %" in out
    assert found["wild"].status == "diverged"
    assert cli.main(["report", str(tmp_path / "tiny" / "records")]) == 0
    assert "### Test accuracy (%)" in capsys.readouterr().out


def test_baseline_writes_thresholds(tmp_path: Path) -> None:
    from flatbench import gate

    for r in grid(range(10)):
        record.write_json(tmp_path / f"{r.id.replace('/', '-')}.json", r.to_json())
    output = tmp_path / "thresholds.toml"
    assert cli.main(["baseline", str(tmp_path), "--output", str(output), "--level", "0.99"]) == 0
    assert gate.read_thresholds(output).level == 0.99
