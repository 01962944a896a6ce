"""SLURM's file: what it runs, with stand-ins for SLURM's commands and Ray's."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from flatbench import cli

FILE = Path(__file__).parents[1] / "docs" / "cluster.sbatch"
STAND_INS = {
    # as it is called: scontrol show hostnames LIST
    "scontrol": 'test "$1 $2 $3" = "show hostnames node[3-4]" && printf "node3\\nnode4\\n"',
    "srun": 'while [ "${1#--}" != "$1" ]; do echo "$1"; shift; done; exec "$@"',
    "ray": 'printf "%s\\n" ray "$@"',
}


@pytest.fixture
def environment(tmp_path):
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[3-4]", "SLURM_JOB_ID": "70001", "SLURM_JOB_NUM_NODES": "2"}
    return job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_ray_begins_on_every_node_and_flatbench_on_the_first(environment):
    command = ["bash", str(FILE), "--protocol", "digits", "--results", "with space"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    at = said.index("ray")
    assert said[:at] == ["--nodes=2", "--ntasks=2"]
    start, run = said[at : said.index("--")], said[said.index("--") + 1 :]
    assert start == ["ray", "symmetric-run", "--address", "node3:30001", "--min-nodes", "2"]
    assert run[0] == "flatbench"
    options = cli._parser().parse_args(run[1:])
    assert (options.engine, options.address) == ("ray", "node3:30001")
    assert (options.protocol, str(options.results)) == ("digits", "with space")


def test_a_node_list_that_cannot_be_read_ends_it(environment):
    failing = environment | {"SLURM_JOB_NODELIST": "?"}
    done = subprocess.run(["bash", str(FILE)], env=failing, capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stdout == b""


def test_slurm_reads_its_options():
    """Only lines before the first command count."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines if line.startswith("#SBATCH")]
    assert options == [line for line in lines[:first] if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in options)
    assert "#SBATCH --ntasks-per-node=1" in options
