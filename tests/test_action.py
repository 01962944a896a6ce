"""The action flatbench-gate: what it may do, and its steps, run in a repository of a user's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flatbench.gate.verdict import COMMENT
from flatbench.protocols.reading import load
from flatbench.records.reading import collect
from tests import tiny
from tests.synthetic import record

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".github" / "actions" / "flatbench-gate"
EXAMPLES = ROOT / "docs" / "project" / ".github" / "workflows"
PAGE = (ROOT / "docs" / "action.md").read_text()
TEXT = (PLACE / "action.yml").read_text()
ACTION = yaml.safe_load(TEXT)
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
OURS = "OWNER/flatbench/.github/actions/flatbench-gate@REF"
GITHUB = {
    "github.server_url": "https://github.com",
    "github.repository": "someone/optimizer",
    "github.run_id": "17",
}


def evaluated(text, context):
    """Return a value of `env` as GitHub hands it to the step; an unknown expression is an error."""
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: context[found[1]], text)


def test_it_pins_what_it_uses_and_has_no_expression_in_a_script():
    workflows = "".join(p.read_text() for p in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert ACTION["runs"]["using"] == "composite"
    assert "secrets." not in TEXT
    assert "github.token" not in TEXT
    for step in STEPS.values():
        assert ("run" in step) != ("uses" in step)
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
            assert step["uses"] in workflows  # one version in the whole repository
            continue
        assert step["shell"] == "bash"
        assert step["run"].startswith("set -euo pipefail\n")
        assert "${{" not in step["run"]
        # each variable is used, and none comes from elsewhere but GitHub's own
        used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", step["run"]))
        assert {name for name in used if not name.startswith(("GITHUB_", "RUNNER_"))} == set(
            step["env"]
        )


def test_each_input_is_used_and_each_output_is_set():
    assert set(re.findall(r"inputs\.([\w-]+)", TEXT)) == set(ACTION["inputs"])
    assert [n for n, i in ACTION["inputs"].items() if i.get("required")] == ["protocol"]
    assert all("default" in i for i in ACTION["inputs"].values() if not i.get("required"))
    by_id = {step["id"]: step for step in STEPS.values() if "id" in step}
    for output in ACTION["outputs"].values():
        step, name = re.fullmatch(
            r"\$\{\{ steps\.(\w+)\.outputs\.([\w-]+) \}\}", output["value"]
        ).groups()
        assert f'echo "{name}=' in by_id[step].get("run", f'echo "{name}=')
    assert set(ACTION["outputs"]) == {"verdict", "report", "comment", "artifact-url"}


def test_the_artifact_is_kept_when_the_gate_fails():
    assert STEPS["Keep what was found"]["if"] == (
        "${{ !cancelled() && steps.gate.outputs.folder != '' }}"
    )
    assert list(STEPS)[-1] == "Keep what was found"


def rows_of(heading):
    """Return the rows of the table below a heading of the page, their cells without markup."""
    part = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {name.strip("`"): cells for name, *cells in rows}


def test_the_page_has_every_input_with_its_default_and_every_output():
    found = rows_of("Inputs")
    assert list(found) == list(ACTION["inputs"])
    for name, (default, _) in found.items():
        given = ACTION["inputs"][name]
        wanted = "required" if given.get("required") else f"`{given['default']}`"
        assert default == ("empty" if wanted == "``" else wanted)
    assert list(rows_of("Outputs")) == list(ACTION["outputs"])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yml")), ids=lambda path: path.stem)
def test_the_examples_may_do_no_more_than_they_need(path):
    workflow = yaml.safe_load(path.read_text())
    (job,) = workflow["jobs"].values()
    pins = set()
    for step in job["steps"]:
        assert "${{" not in step.get("run", "")
        if step.get("uses", OURS) != OURS:
            pins.add(step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
    assert "secrets." not in path.read_text()
    workflows = "".join(p.read_text() for p in (ROOT / ".github" / "workflows").glob("*.yml"))
    assert all(re.search(r"@[0-9a-f]{40}$", pin) and pin in workflows for pin in pins)
    if path.stem == "gate":
        assert workflow["permissions"] == {"contents": "read"}
        assert "permissions" not in job
        assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads "on" as true
        (given,) = (step["with"] for step in job["steps"] if step.get("uses") == OURS)
        assert set(given) <= set(ACTION["inputs"])
        assert (ROOT / "docs" / "project" / given["protocol"]).exists()
        assert f"--output {given['baseline']}" in PAGE
    else:
        assert workflow["permissions"] == {}
        assert job["permissions"] == {"actions": "read", "pull-requests": "write"}
        assert pins == set()  # no checkout, above all
        assert list(workflow[True]) == ["workflow_run"]


# --- the steps, run


class Repository:
    """A repository of a user's, outside the checkout, with a space in each path."""

    def __init__(self, folder):
        self.folder = folder / "a repository"
        (self.folder / "my protocols").mkdir(parents=True)
        whole = tiny.table(
            data={"name": "digits", "train_examples": 400},
            training={"epochs": 4, "batch_size": 32},
            optimizers={"sgd": dict(tiny.SGD)},
        )
        self.protocol = tiny.write(self.folder / "my protocols", whole, "mine")
        self.found = self.folder / "my results" / "mine"

    def __call__(self, **inputs):
        """Run "Train and gate"; return the exit status, what it printed, outputs and summary."""
        files = {name: self.folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        given = {f"inputs.{name}": i.get("default", "") for name, i in ACTION["inputs"].items()}
        given |= {
            "inputs.protocol": "my protocols/mine.toml",
            "inputs.results": "my results",
            "inputs.device": "cpu",
            "inputs.python": sys.executable,
            **{f"inputs.{name.replace('_', '-')}": value for name, value in inputs.items()},
        }
        step = STEPS["Train and gate"]
        # what a test runner's own GitHub step has set is not this one's
        outside = {k: v for k, v in os.environ.items() if not k.startswith("GITHUB_")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.folder,
            env=outside
            | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
            | {name: str(path) for name, path in files.items()}
            | {name: evaluated(value, given | GITHUB) for name, value in step["env"].items()},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert "Traceback" not in done.stdout + done.stderr
        lines = files["GITHUB_OUTPUT"].read_text().splitlines()
        outputs = dict(line.split("=", 1) for line in lines)
        return done, outputs, files["GITHUB_STEP_SUMMARY"].read_text()

    def baseline(self, name, records):
        """Write records as a baseline that the command packs."""
        made = self.folder / f"records of {name}"
        made.mkdir()
        for one in records:
            (made / f"{one['seed']}.json").write_text(json.dumps(one))
        command = [sys.executable, "-P", "-m", "flatbench", "baseline", made.name, "--output", name]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=self.folder, env=environment, check=True, timeout=100)
        return name


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return Repository(tmp_path_factory.mktemp("action"))


@pytest.fixture(scope="module")
def cannot_tell(repository):
    """The action's run with a baseline of one seed, of which only the accuracy is known."""
    protocol = load(str(repository.protocol))
    hashes = {
        "common_hash": protocol.common_hash(),
        "cell_hash": protocol.cell_hash("sgd", "resnet18"),
    }
    one = record("sgd", seed=100, protocol="mine", sam_sharpness=None, provenance=hashes)
    baseline = repository.baseline("one seed.json.gz", [one.to_json()])
    return repository(baseline=baseline, artifact_name="the gate's")


@pytest.fixture(scope="module")
def seeds(cannot_tell, repository):
    """Records of ten other seeds around the trained one; slower, so that time says nothing."""
    assert cannot_tell[0].returncode == 0, cannot_tell[0].stderr
    (path,) = (repository.found / "records").glob("*.json")
    trained = json.loads(path.read_text())
    assert trained["test_accuracy"] > 40  # it has learned something that can be lost
    made = []
    for i in range(10):
        shift = (i - 4.5) / 4.5
        made.append(
            trained
            | {
                "seed": 100 + i,
                "test_accuracy": trained["test_accuracy"] + shift,
                "sam_sharpness": trained["sam_sharpness"] * (1 + shift / 20),
                "seconds": trained["seconds"] * (100 + shift),
                "peak_memory": round(trained["peak_memory"] * (3 + shift / 10)),
            }
        )
    return made


def test_cannot_tell_is_shown_and_fails_nothing(cannot_tell, repository):
    done, outputs, summary = cannot_tell
    assert done.returncode == 0
    assert outputs == {
        "folder": "my results/mine",
        "verdict": "can't tell",
        "report": "my results/mine/gate.md",
        "comment": "my results/mine/gate-comment.md",
    }
    said = "mine, held to one seed.json.gz: can't tell: none of"
    assert summary.startswith(f"## {said}")
    assert "the baseline's 1 seed cannot tell the spread" in summary
    assert re.search(r"^::warning title=flatbench gate::can't tell: none of \d", done.stdout, re.M)
    assert said in done.stdout
    comment = (repository.folder / outputs["comment"]).read_text()
    assert comment.startswith(f"## {said}")
    assert comment.endswith(
        "artifact `the gate's` of [this run]"
        "(https://github.com/someone/optimizer/actions/runs/17)\n"
    )


def test_it_passes(seeds, repository):
    baseline = repository.baseline("good.json.gz", seeds)
    done, outputs, summary = repository(
        baseline=baseline, seeds="0", optimizers="sgd", architectures="resnet18", require_power="50"
    )
    assert (done.returncode, outputs["verdict"]) == (0, "pass"), done.stdout + done.stderr
    assert "::notice title=flatbench gate::pass: none of" in done.stdout
    assert summary.startswith("## mine, held to good.json.gz: pass: none of")
    report = (repository.folder / outputs["report"]).read_text()
    assert report.startswith("## mine, held to good.json.gz: pass: none of")
    assert "## Protocol mine" in report  # the tables stand below
    assert len(collect([repository.found])) == 1


def test_it_fails_against_a_better_baseline_and_says_which_cell_and_why(seeds, repository):
    better = [one | {"test_accuracy": 99 + one["seed"] / 1000} for one in seeds]
    baseline = repository.baseline("better.json.gz", better)
    done, outputs, summary = repository(baseline=baseline)
    assert (done.returncode, outputs["verdict"]) == (1, "fail")
    assert re.search(
        r"^::error title=flatbench gate::fail: 1 of \d checks failed", done.stdout, re.M
    )
    comment = (repository.folder / outputs["comment"]).read_text()
    assert len(comment) < COMMENT
    for text in (summary, comment, (repository.folder / outputs["report"]).read_text()):
        assert text.startswith("## mine, held to better.json.gz: fail: 1 of")
        assert "- mine/resnet18/sgd: test_accuracy was 99.1 in the baseline (10 seeds" in text
        assert re.search(r"^\| mine/resnet18/sgd: test_accuracy .*\| failed +\|$", text, re.M)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"protocol": "my protocols/their.toml"}, "my protocols/their.toml: cannot be read"),
        ({"baseline": ""}, "--baseline must be given: no thresholds"),
        ({"optimizers": "adam"}, "--optimizers must be among sgd"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_no_verdict(inputs, says, repository):
    done, outputs, summary = repository(**inputs)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("flatbench: ")
    assert says in line
    assert set(outputs) == {"folder"}
    said = "no verdict: flatbench ended with exit status 2, and its last line says why"
    assert summary == f"## flatbench gate: {said}\n"
    assert done.stdout == f"::error title=flatbench gate::{said}\n"


def test_thresholds_beside_the_protocol_are_found(seeds, repository):
    """And settings that are not theirs are refused before anything trains."""
    from flatbench import cli

    made = repository.folder / "records of thresholds"
    made.mkdir()
    for one in seeds:
        (made / f"{one['seed']}.json").write_text(json.dumps(one))
    output = repository.protocol.with_name("mine.thresholds.toml")
    assert cli.main(["baseline", str(made), "--output", str(output)]) == 0
    text = repository.protocol.read_text()
    try:
        repository.protocol.write_text(text.replace('"lr" = 0.05', '"lr" = 0.06'))
        done, _, _ = repository()
    finally:
        repository.protocol.write_text(text)
    assert done.returncode == 2
    assert "--baseline must have the settings that resnet18/sgd has in mine now" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_installed_is_the_action_s_own_flatbench(tmp_path):
    python = tmp_path / "a python"
    python.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{tmp_path}/words"\n')
    python.chmod(0o755)
    step = STEPS["Install"]
    assert step["if"] == "${{ inputs.install != '' }}"
    inputs = {
        "inputs.install": "flatbench\n-e .[dev]\ntorch==2.9.0\n",
        "inputs.python": str(python),
    }
    subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={name: evaluated(value, inputs) for name, value in step["env"].items()}
        | {"PATH": os.environ["PATH"], "GITHUB_ACTION_PATH": str(PLACE)}
        | {"RUNNER_TEMP": str(tmp_path)},
        check=True,
        timeout=60,
    )
    words = (tmp_path / "words").read_text().splitlines()
    assert words[:3] == ["-m", "pip", "install"]
    lines = Path(words[-1]).read_text().splitlines()
    assert lines == [str(ROOT), "-e .[dev]", "torch==2.9.0", ""]


# --- the job that comments


@pytest.fixture
def github(tmp_path):
    """Run the comment job's script with a `gh` that notes what it is asked."""
    (job,) = yaml.safe_load((EXAMPLES / "gate-comment.yml").read_text())["jobs"].values()
    (step,) = job["steps"]
    gh = tmp_path / "gh"
    gh.write_text(
        '#!/bin/bash\nprintf "%s\\n" "$*" >> log\nlast="${@: -1}"\n'
        'case "$*" in\n'
        '  *"repos/mine/optimizer/pulls "*) printf "%s" "$NUMBER" ;;\n'
        '  "run download"*) mkdir -p "$last"; cp comment "$last/gate-comment.md" ;;\n'
        '  *"--paginate"*) printf "%s" "$OLD" ;;\n'
        '  *"-F body=@"*) cp "${last#body=@}" sent ;;\n'
        "esac\n"
    )
    gh.chmod(0o755)

    def run(comment, *, head="mine/optimizer", number="7", old="", branch="b"):
        if comment is not None:
            (tmp_path / "comment").write_bytes(comment)
        event = "github.event.workflow_run."
        context = {
            "github.token": "none",
            "github.repository": "mine/optimizer",
            f"{event}id": "17",
            f"{event}html_url": "https://github.com/mine/optimizer/actions/runs/17",
            f"{event}conclusion": "failure",
            f"{event}head_sha": "abc",
            f"{event}head_branch": branch,
            f"{event}head_repository.owner.login": head.split("/")[0],
            f"{event}head_repository.full_name": head,
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=tmp_path,
            env={name: evaluated(value, context) for name, value in step["env"].items()}
            | {"PATH": f"{tmp_path}:/usr/bin:/bin", "RUNNER_TEMP": str(tmp_path / "temp")}
            | {"NUMBER": number, "OLD": old},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        sent = tmp_path / "sent"
        return (tmp_path / "log").read_text(), sent.read_bytes() if sent.exists() else None

    (tmp_path / "temp").mkdir()
    return run


def test_the_comment_of_a_branch_is_markdown(github):
    log, sent = github(b"## mine: pass\n\n| a |\n")
    assert "--method POST repos/mine/optimizer/issues/7/comments" in log
    assert sent.startswith(b"<!-- flatbench-gate -->\n[The gate](https://github.com/mine/optimizer")
    assert b"ended with: failure." in sent
    assert sent.endswith(b"\n\n## mine: pass\n\n| a |\n")


def test_the_comment_of_a_fork_is_code_in_which_nothing_works(github):
    hostile = b"## pass\n\n![x](http://x)\r@someone\r\n</details>\n"
    log, sent = github(hostile, head="stranger/optimizer", branch='$(touch x)"; touch y')
    assert 'head=stranger:$(touch x)"; touch y ' in log
    below = sent.split(b"\n\n", 1)[1]
    assert b"\r" not in sent
    assert all(line.startswith(b"    ") for line in below.splitlines())


@pytest.mark.parametrize("head", ["mine/optimizer", "stranger/optimizer"])
def test_a_comment_is_no_longer_than_github_takes(github, head):
    _, sent = github(b"\n" * 100_000, head=head)
    assert len(sent) == 65_000


def test_the_same_comment_is_written_anew(github):
    log, _ = github(b"x", old="41\n42\n")
    assert "--method PATCH repos/mine/optimizer/issues/comments/41 " in log
    assert "POST" not in log


def test_a_run_that_left_nothing_is_told_and_one_of_no_pull_request_is_not(github):
    log, sent = github(None)
    assert sent.endswith(b"It left no comment: its log says why.\n")
    log, _ = github(b"x", number="")
    assert "run download" not in log.splitlines()[-1]
