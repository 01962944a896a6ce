"""optim/ and sharpness/ can be copied into another project: they need nothing else of flatbench."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "flatbench"
MAY_IMPORT = {"optim": {"torch", "triton"}, "sharpness": {"torch", "numpy"}}

# The finder stands before all others, so an installed flatbench is not found either.
WITHOUT_FLATBENCH = """
import sys

class NoFlatbench:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "flatbench":
            raise ModuleNotFoundError(f"{name} was asked for")

sys.meta_path.insert(0, NoFlatbench())
import torch
before = set(sys.modules)
"""

USES = {
    "optim": """
from lifted import optim
assert not {m for m in set(sys.modules) - before if m.startswith("triton")}, "triton is loaded"
model = torch.nn.Linear(3, 2)
start = model.weight.detach().clone()
optimizer = optim.SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.05)

def closure():
    optimizer.zero_grad()
    loss = model(torch.ones(4, 3)).square().mean()
    loss.backward()
    return loss

optimizer.step(closure)
assert not torch.equal(start, model.weight)
""",
    "sharpness": """
from lifted import sharpness
model = torch.nn.Linear(3, 2)
x, y = torch.randn(8, 3), torch.arange(8) % 2
surface = sharpness.loss_surface(model, torch.nn.functional.cross_entropy, x, y)
assert sharpness.ascent_sharpness(surface, rho=0.1).value > 0
assert sharpness.average_sharpness(surface, sigma=0.1).value > 0
assert sharpness.hessian_max_eigenvalue(surface).value > 0
assert sharpness.hessian_trace(surface, products=6).value > 0
assert sharpness.spectral_density(surface, probes=1, steps=2).dimension == 8
""",
}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_copy_under_another_name_works_without_flatbench(folder, tmp_path):
    (tmp_path / "lifted").mkdir()
    copy = tmp_path / "lifted" / folder
    shutil.copytree(PACKAGE / folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
    code = WITHOUT_FLATBENCH + USES[folder]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_only_these_packages_are_imported(folder):
    """In any line, a lazy import included: what the run above never reaches."""
    allowed = MAY_IMPORT[folder] | sys.stdlib_module_names
    found = [
        (file.name, name)
        for file in sorted((PACKAGE / folder).rglob("*.py"))
        for name in imported(file, within=len(file.relative_to(PACKAGE / folder).parts))
    ]
    assert found
    assert [(file, name) for file, name in found if name not in allowed] == []


def imported(file, within):
    """Yield the top-level packages that a file imports; of relative imports those too far up.

    ``within`` is how many dots a relative import may have and stay in the folder.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module is not None:
                yield node.module.partition(".")[0]
            # a relative import must not climb out of the folder
            elif node.level > within:
                yield "." * node.level
