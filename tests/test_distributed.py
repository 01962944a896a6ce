"""SAM over several processes: what DDP's two ways give, and what shards are refused with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import ranks

RANKS = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    commands = [
        [sys.executable, "-m", "tests.ranks", str(rank), str(RANKS), str(folder)]
        for rank in range(RANKS)
    ]
    root = Path(__file__).parents[1]
    started = [subprocess.Popen(c, cwd=root, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        said = [process.communicate(timeout=240)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * RANKS, said
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("name", ranks.METHODS)
def test_synchronised_ranks_are_equal_and_as_one_process_on_the_whole_batch(found, name):
    first, *others = (of_rank[name] for of_rank in found)
    assert all(torch.equal(first, other) for other in others)
    alone = ranks.synchronised(name, ranks.network(), RANKS)
    torch.testing.assert_close(first, alone, rtol=1e-9, atol=1e-11)


def test_perturbed_by_worker_ranks_are_equal_and_as_m_sam_with_a_part_a_rank(found):
    (first, skipped), *others = (of_rank["by worker"] for of_rank in found)
    assert skipped == 0
    assert all(torch.equal(first, other) for other, _ in others)
    torch.testing.assert_close(first, ranks.by_parts(RANKS), rtol=1e-9, atol=1e-11)
    assert torch.equal(first, found[0]["by the page"])
    assert (first - found[0]["sam"]).abs().max() > 1e-4  # and not as the synchronised one


def test_a_bad_gradient_on_one_rank_skips_the_step_on_all(found):
    (first, _), *others = (of_rank["spoilt"] for of_rank in found)
    assert [of_rank["spoilt"][1] for of_rank in found] == [1] * RANKS
    assert all(torch.equal(first, other) for other, _ in others)
    torch.testing.assert_close(first, ranks.by_parts(RANKS, spoilt=2), rtol=1e-9, atol=1e-11)


def test_shards_are_refused_in_one_line(found):
    for of_rank in found:
        for kind, said in of_rank["refused"].items():
            assert said.startswith("parameters must be whole on every rank, got shards"), kind
            assert "\n" not in said


def test_a_method_that_mixes_both_gradients_is_not_perturbed_by_worker(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1
    )
    try:
        for name in ("gsam", "looksam"):
            model = ranks.network()
            optimizer = ranks.made(name, model)
            optimizer.process_group = torch.distributed.group.WORLD
            ranks.backward(model, *ranks.data(0, 1))
            with pytest.raises(RuntimeError, match="process_group must be None"):
                optimizer.first_step()
    finally:
        torch.distributed.destroy_process_group()
