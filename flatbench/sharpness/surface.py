"""The loss of a model on fixed examples, as a function L(w) of one flat vector of parameters.

Every measure of sharpness takes one. The model is called through `torch.func.functional_call` with
tensors of our own, so its parameters, their gradients and its buffers are never written to. What
has to be switched (training flags, arithmetic) is switched for one evaluation and then put back. So
a surface holds nothing open: several measures can share it, and it may be dropped at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .arithmetic import ieee_arithmetic, plain_attention

Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps (outputs, targets) to the mean loss of those examples, a scalar."""

BatchNormMode = Literal["eval", "train"]


@dataclass(frozen=True)
class Measure:
    """One measured number.

    Attributes:
        value: the measure; nan or inf where the loss or its derivatives are not finite.
        standard_error: the standard error of ``value``, from the samples that were averaged; None
            where there is no average or a single sample.
        gradient_evaluations: the cost, where 1 is one forward and one backward pass over all the
            surface's examples (see `LossSurface`).
        converged: False where an iteration ended at its limit, short of the tolerance.
        samples: how many samples ``standard_error`` is of. An interval takes Student's t with
            samples − 1 degrees of freedom.
    """

    value: float
    standard_error: float | None
    gradient_evaluations: float
    converged: bool = True
    samples: int = 1


@dataclass(eq=False)
class LossSurface:
    """L(w) and its gradient; made by `loss_surface`.

    During an evaluation the model is in evaluation mode (no dropout), autocast is off, and float32
    arithmetic is IEEE's with cuDNN's deterministic algorithms: TF32 would drown small differences.
    Attention is computed from its definition: torch's fused kernels have no second derivative.

    The surface is of the model as it was when the surface was made: later training moves neither
    ``center`` nor ``buffers``. Parameters that do not require a gradient are not copied; make a new
    surface after changing those.

    Flat vectors are float64 of shape (d,), d the number of parameters that require a gradient,
    in the order of ``model.named_parameters()``; they are cast to the parameters' own types where
    they enter the model. L is the mean over all examples, summed in float64 over the batches.

    ``gradient_evaluations`` counts the work so far in passes over all examples: a gradient is 1,
    a loss alone 1/3 (a backward pass costs two forward passes: Griewank & Walther 2008), and for
    products with the Hessian see `HessianProducts`. A measure counts its work on a `fresh` copy.
    """

    model: nn.Module
    loss: Loss
    inputs: Tensor
    targets: Tensor
    batch_size: int  # examples at a time
    batchnorm: BatchNormMode
    parameters: dict[str, Tensor]  # those that require a gradient, detached: shapes, types, strides
    buffers: dict[str, Tensor]  # copies
    center: Tensor  # (d,), a copy of the model's own w
    gradient_evaluations: float = 0.0

    @property
    def examples(self) -> int:
        """The number of examples that L is a mean over."""
        return len(self.inputs)

    @property
    def dimension(self) -> int:
        """The number d of parameters."""
        return self.center.numel()

    @property
    def precision(self) -> float:
        """The relative spacing of the coarsest parameter type; float32 gives 1.2e-7."""
        return max(torch.finfo(p.dtype).eps for p in self.parameters.values())

    def fresh(self) -> LossSurface:
        """Return the same surface with its count of gradient evaluations at zero."""
        return replace(self, gradient_evaluations=0.0)

    def groups(self, size: int | None) -> Iterator[LossSurface]:
        """Yield the surface of each group of ``size`` consecutive examples; None means all.

        The last group holds the rest.
        """
        count = size or self.examples
        for inputs, targets in _split(self.inputs, self.targets, count):
            yield replace(self, inputs=inputs, targets=targets, gradient_evaluations=0.0)

    def value(self, w: Tensor, buffers: Mapping[str, Tensor] | None = None) -> float:
        """Return L(w); ``buffers`` stand in for the model's own of the same names."""
        weights = self.unflattened(w)
        with self.prepared(), torch.no_grad():
            total = sum(
                (share * self.batch_loss(weights, x, y, buffers) for share, x, y in self.batches()),
                self.center.new_zeros(()),
            )
        self.gradient_evaluations += 1 / 3
        return float(total)

    def gradient(self, w: Tensor) -> tuple[float, Tensor]:
        """Return L(w) and its gradient at w, (d,)."""
        leaves = self.leaves(w)
        total = self.center.new_zeros(())
        gradient = torch.zeros_like(self.center)
        with self.prepared(), torch.enable_grad():
            for share, x, y in self.batches():
                loss = self.batch_loss(leaves, x, y)
                total += share * loss.detach()
                if loss.requires_grad:
                    raise_if_cut([loss])
                    parts = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
                    gradient += share * flattened(parts)
        self.gradient_evaluations += 1
        return float(total), gradient

    def recomputed_buffers(self, w: Tensor) -> dict[str, Tensor]:
        """Return the buffers with BatchNorm's running statistics recomputed at w.

        These are the plain averages of the means and unbiased variances of the batches of these
        examples, as in `torch.optim.swa_utils.update_bn` (Izmailov et al. 2018).
        """
        norms = [m for m in _batchnorms(self.model) if m.running_mean is not None]
        if not norms:
            return self.buffers
        momenta = [m.momentum for m in norms]
        owned = {id(b) for m in norms for b in m.buffers(recurse=False)}
        buffers = {name: b.clone() for name, b in self.buffers.items()}
        for name, buffer in self.model.named_buffers():
            if id(buffer) in owned:
                buffers[name].zero_()  # the first of the averages replaces it
        weights = self.unflattened(w)
        with self.prepared(), torch.no_grad():  # which puts the training flags back
            try:
                for m in norms:
                    m.training, m.momentum = True, None  # None: the average over all batches
                for _, x, _ in self.batches():
                    functional_call(self.model, weights | buffers, (x,))
            finally:
                for m, momentum in zip(norms, momenta, strict=True):
                    m.momentum = momentum
        self.gradient_evaluations += 1 / 3
        return buffers

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Set the model's training flags and the arithmetic for an evaluation; put them back.

        A flag is written only where it changes: an attribute of an `nn.Module` is slow to set, and
        all of them, twice an evaluation, took a tenth of a small ResNet18's forward pass.
        """
        flags = [(module, module.training) for module in self.model.modules()]
        try:
            if any(training for _, training in flags):
                self.model.eval()
            if self.batchnorm == "train":
                for norm in _batchnorms(self.model):
                    norm.train()
            no_autocast = torch.autocast(self.center.device.type, enabled=False)
            with ieee_arithmetic(), plain_attention(), no_autocast:
                yield
        finally:
            for module, training in flags:
                if module.training != training:
                    module.training = training

    def batches(self) -> Iterator[tuple[float, Tensor, Tensor]]:
        """Yield each batch's share of the examples, inputs and targets, on the model's device."""
        device = self.center.device
        for x, y in _split(self.inputs, self.targets, self.batch_size):
            yield len(x) / self.examples, x.to(device), y.to(device)

    def batch_loss(
        self,
        weights: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the mean loss of a batch; what the call writes goes to copies of the buffers."""
        own = self.buffers if buffers is None else buffers
        call = weights | {name: buffer.clone() for name, buffer in own.items()}
        loss = self.loss(functional_call(self.model, call, (x,)), y)
        if loss.numel() != 1:
            raise ValueError(
                "loss must return one number, the mean over the examples, "
                f"got a tensor of shape {tuple(loss.shape)}"
            )
        return loss.reshape(())

    def unflattened(self, flat: Tensor) -> dict[str, Tensor]:
        """Return copies of the pieces of ``flat`` in the parameters' shapes, types and strides."""
        pieces = torch.split(flat, [p.numel() for p in self.parameters.values()])
        return {
            name: torch.empty_like(p).copy_(piece.view(p.shape))
            for (name, p), piece in zip(self.parameters.items(), pieces, strict=True)
        }

    def leaves(self, w: Tensor) -> dict[str, Tensor]:
        """Return the same as `unflattened`, to differentiate by."""
        return {name: piece.requires_grad_() for name, piece in self.unflattened(w).items()}


def loss_surface(
    model: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch_size: int | None = None,
    batchnorm: BatchNormMode = "eval",
) -> LossSurface:
    """Return the surface of the model's loss on these examples, which all measures take.

    For example ``hessian_trace(loss_surface(model, cross_entropy, x, y))``. Nothing is evaluated
    yet, and the model may train on: see `LossSurface`.

    Args:
        model: any module that maps a batch of inputs to outputs and has parameters that require a
            gradient. Those that do not are constants. A double backward pass must be possible for
            the Hessian's measures, so give the module itself, not its `torch.compile`.
        loss: see `Loss`.
        inputs: (n, ...), on any device; batches are moved to the model's.
        targets: (n, ...).
        batch_size: examples at a time; None means all. With ``batchnorm="eval"`` it changes memory
            and rounding only.
        batchnorm: "eval" normalises with the running statistics. "train" normalises with those of
            each batch, so that L depends on ``batch_size``; the running ones do not move.

    Raises:
        ValueError: an argument is out of range, or the model has nothing to differentiate.
    """
    if len(inputs) != len(targets):
        raise ValueError(
            "inputs and targets must be equally many, "
            f"got {len(inputs)} and {len(targets)} examples"
        )
    if len(inputs) == 0:
        raise ValueError("inputs must hold at least 1 example, got none")
    size = len(inputs) if batch_size is None else at_least("batch_size", batch_size, 1)
    if batchnorm not in get_args(BatchNormMode):
        raise ValueError(f"batchnorm must be 'eval' or 'train', got {batchnorm!r}")
    named = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    devices = {str(p.device) for _, p in named}
    if len(devices) > 1:
        names = ", ".join(sorted(devices))
        raise ValueError(f"model must have its parameters on one device, got {names}")

    parameters = dict(named)
    center = flattened(parameters.values())
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    return LossSurface(model, loss, inputs, targets, size, batchnorm, parameters, buffers, center)


def at_least(name: str, number: int, least: int) -> int:
    """Return ``number``, which must be a whole number of at least ``least``."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {number!r}")
    return number


def non_negative(name: str, number: float) -> float:
    """Return ``number``, which must be finite and not negative."""
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {number!r}")
    return float(number)


def element_scale(center: Tensor, adaptive: bool, eta: float) -> Tensor:
    """Return the diagonal of T, (d,): |w| + eta where ``adaptive`` (Kwon et al. 2021), else 1."""
    non_negative("eta", eta)
    return center.abs() + eta if adaptive else torch.ones_like(center)


def standard_error(samples: Tensor) -> float | None:
    """Return the standard error of the mean of ``samples`` (n,); None for a single one."""
    if len(samples) < 2:
        return None
    return float(samples.std(correction=1)) / math.sqrt(len(samples))


def random_signs(rows: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return (rows, d) independent signs, drawn on the CPU: a seed means the same everywhere."""
    bits = torch.randint(2, (rows, like.numel()), generator=generator, dtype=torch.int8)
    return (2 * bits - 1).to(like)


def _split(inputs: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(inputs, size), torch.split(targets, size), strict=True)


def flattened(parts: Iterable[Tensor]) -> Tensor:
    """Return the parts as one float64 vector, (d,)."""
    return torch.cat([part.detach().to(torch.float64).reshape(-1) for part in parts])


# Nodes of autograd's graph behind which a gradient is cut off from the weights. Such a node would
# raise an error, but it is no part of a way to the weights, so autograd does not run it, and what
# lies behind it would silently count as 0.
_CUTS = {
    "torch::autograd::Error": "a function in it is once_differentiable: no second derivative",
    "CheckpointFunctionBackward": "checkpoint must be called with use_reentrant=False",
}


def raise_if_cut(results: Iterable[Tensor]) -> None:
    """Raise if the way from these results back to the weights is cut."""
    waiting = [result.grad_fn for result in results if result.grad_fn is not None]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node.name() in _CUTS:
            raise RuntimeError(f"the model cannot be differentiated: {_CUTS[node.name()]}")
        further = {f for f, _ in node.next_functions if f is not None} - seen
        seen |= further
        waiting += further


def _batchnorms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]
