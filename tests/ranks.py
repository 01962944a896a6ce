"""What each process of tests/test_distributed.py does, over gloo."""

import os
import re
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flatbench.optim import GSAM, SAM, FriendlySAM, LookSAM, MicroBatchSAM, MomentumSAM

STEPS, PER_RANK = 6, 4
METHODS = {
    "sam": (SAM, {}),
    "asam": (SAM, {"adaptive": True}),
    "friendly": (FriendlySAM, {}),
    "gsam": (GSAM, {}),
    "looksam": (LookSAM, {"interval": 3}),
    "msam": (MomentumSAM, {}),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def data(step, ranks, rank=None):
    """The batch of a step: all of it, or one rank's part."""
    chance = torch.Generator().manual_seed(step)
    x = torch.randn(ranks * PER_RANK, 3, generator=chance, dtype=torch.float64)
    y = torch.randn(ranks * PER_RANK, 2, generator=chance, dtype=torch.float64)
    part = slice(None) if rank is None else slice(rank * PER_RANK, (rank + 1) * PER_RANK)
    return x[part], y[part]


def backward(model, x, y):
    F.mse_loss(model(x), y).backward()


def made(name, model):
    cls, options = METHODS[name]
    return cls(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9, **options)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def synchronised(name, model, ranks, rank=None):
    """Both gradients are averages over all ranks, as DDP makes them."""
    optimizer = made(name, model)
    for step in range(STEPS):
        x, y = data(step, ranks, rank)
        backward(model, x, y)
        if optimizer.passes == 1:
            optimizer.step()
            optimizer.zero_grad()
            continue
        optimizer.first_step(zero_grad=True)
        backward(model, x, y)
        optimizer.second_step(zero_grad=True)
    optimizer.eval()
    return weights(model)


def by_worker(model, ranks, rank, spoilt=None):
    """Each rank perturbs by its own gradient; the second gradients are averaged.

    ``spoilt`` is the step in which rank 0's first gradient is not finite.
    """
    optimizer = made("sam", model)
    optimizer.process_group = dist.group.WORLD
    for step in range(STEPS):
        x, y = data(step, ranks, rank)
        with model.no_sync():  # the forward pass, too: it decides what the backward one does
            backward(model, x, y)
        if step == spoilt and rank == 0:
            next(model.parameters()).grad[0, 0] = torch.nan
        optimizer.first_step(zero_grad=True)
        backward(model, x, y)
        optimizer.second_step(zero_grad=True)
    return weights(model), optimizer.skipped_steps.item()


def by_the_page(model, ranks, rank):
    """The same by the loop of docs/optim.md, as it stands there."""
    optimizer = made("sam", model)
    page = (Path(__file__).parents[1] / "docs" / "optim.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    batches = [data(step, ranks, rank) for step in range(STEPS)]
    names = {"model": model, "optimizer": optimizer, "torch": torch, "batches": batches}
    exec(code, names | {"loss": F.mse_loss})
    return weights(model)


def by_parts(ranks, spoilt=None):
    """What `by_worker` does, in one process: m-SAM with a part a rank."""
    model = network()
    optimizer = MicroBatchSAM(model.parameters(), torch.optim.SGD, rho=0.2, lr=0.1, momentum=0.9)
    for step in range(STEPS):
        if step == spoilt:
            continue
        parts = [data(step, ranks, rank) for rank in range(ranks)]
        optimizer.step_parts([lambda x=x, y=y: backward(model, x, y) for x, y in parts])
    return weights(model)


def refused(wrap):
    """Return what SAM says to sharded parameters."""
    model = wrap(network())
    try:
        SAM(model.parameters(), torch.optim.SGD, lr=0.1)
    except ValueError as error:
        return str(error)
    return "taken"


def fully_shard(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def fsdp1(use_orig_params):
    def wrap(model):
        from torch.distributed.fsdp import FullyShardedDataParallel

        cpu = torch.device("cpu")
        return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=use_orig_params)

    return wrap


def main(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks
    )

    def ddp():
        return DistributedDataParallel(network())

    found = {name: synchronised(name, ddp(), ranks, rank) for name in METHODS}
    found["by worker"] = by_worker(ddp(), ranks, rank)
    found["by the page"] = by_the_page(ddp(), ranks, rank)
    found["spoilt"] = by_worker(ddp(), ranks, rank, spoilt=2)
    found["refused"] = {
        "FSDP2": refused(fully_shard),
        "FSDP1": refused(fsdp1(use_orig_params=False)),
        "FSDP1, original parameters": refused(fsdp1(use_orig_params=True)),
    }
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os._exit(0)
