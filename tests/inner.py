"""Runs a file of tests in a process of its own, and reports each of them by name.

Triton decides between compiling, interpreting and its driver when it is imported, so tests of the
three can't share a process. xdist gives a core whole files: each inner file has an outer one.
"""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest


def run_inner(subtests, tmp_path, file, environment):
    """Run a file of this folder; return what it printed. Each inner test is a subtest."""
    report = tmp_path / "inner.xml"
    quiet = ["-qs", "-p", "no:cacheprovider", f"--junitxml={report}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, str(Path(__file__).parent / file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(run.stdout)
    whole = run.stdout + run.stderr
    assert report.exists(), whole  # the process died
    failures = 0
    cases = list(ElementTree.parse(report).iter("testcase"))
    for case in cases:
        name, outcome = case.attrib["name"], {child.tag: child for child in case}
        wrong = [outcome[tag] for tag in ("failure", "error") if tag in outcome]
        failures += bool(wrong)
        kind = "failed" if wrong else "skipped" if "skipped" in outcome else "passed"
        print(f"{kind} {float(case.get('time', 0)):6.2f} s {name}")
        with subtests.test(name):
            if wrong:
                text = "\n".join(one.text or one.get("message", "") for one in wrong)
                pytest.fail(f"{file}::{name}\n{text}", pytrace=False)
            if "skipped" in outcome:
                pytest.skip(outcome["skipped"].get("message", ""))
    assert cases, whole
    # an inner process may also fail without a failing test: at its end, or in a fixture's
    assert run.returncode == (1 if failures else 0), whole
    return run.stdout
