"""Files that are read or written: one line and exit 2 where that cannot be, and nothing is lost."""

import contextlib
import gzip
import os
import re
import stat
import tempfile

import pytest

from flatbench import cli, files
from flatbench.errors import UsageError
from tests import tiny
from tests.synthetic import grid

SAID = "flatbench: "


@pytest.fixture
def saved(tmp_path):
    """A folder of records."""
    for r in grid([0, 1], epochs=2, architectures=("resnet18",)):
        name = f"{r.architecture}-{r.optimizer}-seed{r.seed}.json"
        files.write_json(tmp_path / "mine" / "records" / name, r.to_json())
    return tmp_path / "mine"


def says(capsys, *arguments):
    """What a command that cannot do its work says on standard error: one line, exit code 2."""
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(SAID)
    assert error.count("\n") == 1
    return error.removeprefix(SAID).rstrip("\n")


def test_a_device_is_written_to_and_stays_one(tmp_path):
    for number, name in ((3, "null"), (7, "full")):
        if os.geteuid() == 0:
            device = tmp_path / name
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, number))
        else:
            device = files.Path("/dev") / name
        if name == "null":
            files.write_atomically(device, b"gone")
        else:
            with pytest.raises(OSError, match="No space left"):
                files.write_atomically(device, b"no room")
        assert stat.S_ISCHR(device.stat().st_mode)


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    there, link = tmp_path / "there" / "a.md", tmp_path / "link.md"
    files.write_atomically(there, b"before")
    link.symlink_to(there)
    files.write_atomically(link, b"after")
    assert link.is_symlink()
    assert there.read_bytes() == b"after"
    dangling = tmp_path / "dangling"
    dangling.symlink_to("new")
    files.write_atomically(dangling, b"made")
    assert (tmp_path / "new").read_bytes() == b"made"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_is_what_the_umask_leaves_or_what_it_was(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        files.write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    (tmp_path / "a").chmod(0o640)
    files.write_atomically(tmp_path / "a", b"")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_name_as_long_as_a_file_may_have_is_written(tmp_path):
    path = tmp_path / ("n" * 252 + ".md")
    files.write_atomically(path, b"whole")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("command", ["report", "compare", "figures"])
@pytest.mark.parametrize("where", ["folder", "below a file", "too long", "full"])
def test_what_cannot_be_written_is_one_line(command, where, saved, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    output, what = {
        "folder": (tmp_path / "folder", "Is a directory"),
        "below a file": (tmp_path / "file" / "a.md", "File exists|Not a directory"),
        "too long": (tmp_path / f"{'n' * 300}.md", "File name too long"),
        "full": (files.Path("/dev/full"), "No space left on device"),
    }[where]
    if command == "figures":
        if where in ("folder", "full"):
            output, what = tmp_path / "file", "File exists"
        arguments = ["report", saved, "--figures", output, "--output", tmp_path / "a.md"]
    elif command == "report":
        arguments = ["report", saved, "--format", "markdown", "--output", output]
    else:
        arguments = ["compare", saved, saved, "--summary", output]
    line = says(capsys, *arguments)
    assert re.search(what, line)
    assert str(output.parent if where == "below a file" else output) in line
    assert (tmp_path / "file").read_text() == "in the way"
    assert not [*tmp_path.glob(".*")]


def test_a_step_summary_that_cannot_be_written(saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert "Is a directory" in says(capsys, "compare", saved, saved)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    assert "No space left on device" in says(capsys, "compare", saved, saved)


@pytest.mark.parametrize("command", ["tune", "sharpness"])
def test_an_output_is_tried_before_long_work(command, tmp_path, capsys, monkeypatch):
    protocol = tiny.write(tmp_path)
    (tmp_path / "folder").mkdir()
    arguments = {
        "tune": ["tune", protocol],
        "sharpness": ["sharpness", "--protocol", protocol, "--weights", tmp_path / "w.pt"],
    }[command]
    line = says(capsys, *arguments, "--output", tmp_path / "folder")
    assert line == f"{tmp_path / 'folder'}: Is a directory"


def test_a_pipe_or_a_device_without_an_end_is_refused(tmp_path, saved, capsys):
    pipe = tmp_path / "records" / "a.json"
    pipe.parent.mkdir()
    os.mkfifo(pipe)
    assert says(capsys, "report", tmp_path) == f"{pipe}: must be a file, got a pipe"
    assert says(capsys, "report", pipe) == f"{pipe}: must be a file, got a pipe"
    assert says(capsys, "report", "/dev/zero") == "/dev/zero: must be a file, got a device"
    thresholds = tmp_path / "a.toml"
    os.mkfifo(thresholds)
    said = f"{thresholds}: must be a file, got a pipe"
    assert says(capsys, "compare", thresholds, saved) == said
    assert says(capsys, "list", "--protocol", thresholds) == said


@contextlib.contextmanager
def as_somebody():
    """Root may read everything: in this block the process is somebody else's."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_folder_that_is_closed(capsys):
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = files.Path(name)
        folder.chmod(0o755)
        for closed in (folder / "records", folder / "other"):
            closed.mkdir()
            files.write_json(closed / "a.json", grid([0])[0].to_json())
            closed.chmod(0)
        other, new = folder / "other", folder / "new"
        # what the commands import on their way may lie where somebody else may not read
        says(capsys, "report", folder / "none")
        says(capsys, "run", "--protocol", "digits", "--results", other / "a.json")
        with as_somebody():
            assert says(capsys, "report", folder) == f"{folder / 'records'}: Permission denied"
            assert says(capsys, "report", other) == f"{other / 'records'}: Permission denied"
            assert "Permission denied" in says(capsys, "report", other / "a.json")
            said = says(capsys, "run", "--protocol", "digits", "--results", new)
        assert said == f"{new / 'digits'}: cannot be written to: Permission denied"


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"a" * 2**20)
    assert len(files.read(path, 2**20)) == 2**20
    with pytest.raises(UsageError, match=r"a\.toml: must have at most 1,048,575 bytes"):
        files.read(path, 2**20 - 1)
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(bytes(2**24)))
    with pytest.raises(UsageError, match="must have at most 1,048,576 bytes"):
        files.read(packed, 2**20)


def test_what_the_system_says_cannot_move_the_cursor(tmp_path, capsys):
    line = says(capsys, "report", tmp_path / "a\x1b[2J\x07.json")
    assert "\x1b" not in line
    assert r"a\x1b[2J\x07.json" in line
