"""torch.optim.Muon for networks with convolutions.

torch's Muon takes matrices alone, of which a convolutional network has hardly one. Its author steps
a bank of filters as one matrix, a row a filter (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/), and so does `FilterMuon`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class FilterMuon(Optimizer):
    """torch.optim.Muon over parameters of two or more dimensions, each as a matrix.

    A parameter of shape (filters, ...) is a matrix of shape (filters, rest) to it. The order of the
    columns follows the memory format: orthogonalisation commutes with any permutation of them.

    Args:
        params: parameters, or groups of them.
        options: those of torch.optim.Muon.

    Raises:
        ValueError: a parameter has less than two dimensions, or as torch.optim.Muon.
    """

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, options)
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim < 2:
                    raise ValueError(
                        f"FilterMuon takes parameters of two or more dimensions, got {p.shape}"
                    )
        self._make()

    def _make(self) -> None:
        """Make torch's Muon on matrices that share memory and state with the parameters."""
        self.muon = torch.optim.Muon(
            [
                {**group, "params": [nn.Parameter(_matrix(p.detach())) for p in group["params"]]}
                for group in self.param_groups
            ]
        )
        for group, inner in zip(self.param_groups, self.muon.param_groups, strict=True):
            group.update({key: value for key, value in inner.items() if key not in group})
            for p, matrix in zip(group["params"], inner["params"], strict=True):
                self.muon.state[matrix] = self.state[p]

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Called by load_state_dict with new groups and state, and by pickle with everything.
        super().__setstate__(state)
        self._make()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step by the gradients that are there; a closure is called once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, inner in zip(self.param_groups, self.muon.param_groups, strict=True):
            inner.update({key: value for key, value in group.items() if key != "params"})
            for p, matrix in zip(group["params"], inner["params"], strict=True):
                matrix.data = _matrix(p.detach())  # whoever loads weights may have moved them
                matrix.grad = None if p.grad is None else _matrix(p.grad, like=p)
        self.muon.step()  # type: ignore[no-untyped-call]
        for inner in self.muon.param_groups:
            for matrix in inner["params"]:
                matrix.grad = None  # else zero_grad(set_to_none) would keep it in memory
        return loss


def _matrix(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return a tensor of shape (filters, ...) as (filters, rest), columns as `like` has them."""
    like = tensor if like is None else like
    strides = like.stride()
    inner = sorted(range(1, like.ndim), key=lambda axis: -strides[axis])
    found = tensor.permute(0, *inner)
    # a view of the parameter itself, else steps would be lost; a gradient may be copied
    return found.view(len(found), -1) if like is tensor else found.reshape(len(found), -1)


def groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Part a model's parameters as Muon is meant to be used: hidden matrices and filters by it.

    What is left goes to the row's own optimizer, which should be AdamW: vectors, and the weights of
    the first and of the last layer. Both share one learning rate and weight decay, for which Muon's
    updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982).

    Args:
        model: the network.
        lr: the row's learning rate.
        weight_decay: the row's weight decay.
    """
    weights = [p for p in model.parameters() if p.ndim >= 2]
    hidden = set(weights[1:-1])
    return [
        {
            "params": [p for p in model.parameters() if p in hidden],
            "optimizer": FilterMuon,
            "lr": lr,
            "weight_decay": weight_decay,
            "adjust_lr_fn": "match_rms_adamw",
        },
        {"params": [p for p in model.parameters() if p not in hidden]},
    ]
