"""Whatever becomes of the streams that a command prints to, it comes to its own end."""

import os
import subprocess
import sys

import pytest

# What a command of ours goes through, without its training: `cli.main` prints these.
PRINTS = """
import sys
from flatbench import cli

def command(options):
    print("97.45 ± 0.3 \\udcff", flush=True)
    print("on standard error: ±", file=sys.stderr, flush=True)
    for _ in range(3):
        print("x" * 100_000, flush=True)
    with open(sys.argv[1], "w") as file:
        file.write(f"to the end, {file.fileno() > 2}")
    return 3

cli._list = command
sys.exit(cli.main(["list"]))
"""


def shell(tmp_path, redirections, **environment):
    """Run the command in a shell with these redirections."""
    (tmp_path / "prints.py").write_text(PRINTS)
    script = f"{sys.executable} prints.py end {redirections}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "redirections",
    ["", "| head -c 1", "2>&1 | head -c 1", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true"],
)
def test_a_command_comes_to_its_own_end(tmp_path, redirections):
    done = shell(tmp_path, redirections)
    assert done.returncode == 3
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "end").read_text() == "to the end, True"  # a file has no stream's number


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONUNBUFFERED": "1"},
    ],
)
def test_what_a_stream_cannot_encode_is_replaced(tmp_path, environment):
    done = shell(tmp_path, "", **environment)
    assert done.returncode == 3, done.stderr
    assert done.stdout.startswith((b"97.45 ? 0.3 ?\n", "97.45 ± 0.3 ?\n".encode()))
    assert b"on standard error: " in done.stderr


def test_a_disk_that_is_full_is_no_reader_that_has_gone(tmp_path):
    done = shell(tmp_path, "> /dev/full")
    assert done.returncode not in (0, 3)
    assert b"No space left on device" in done.stderr
