"""One training step as a CUDA graph: captured after a warm-up of real steps, then replayed.

The warm-up steps are the run's own first steps, taken as they are; a capture executes nothing; so
a run is the same sequence of steps with graphs as without. What a replay needs to find where the
capture found it is static: the batch's indices here, the model, its gradients' memory (the graph's
own pool), the optimizer's tables and the learning rate (device tensors).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]  # indices of a batch [B] -> a tensor of sums
Capture = Callable[[Step, Tensor, Sequence[torch.Generator]], Callable[[], Tensor]]

WARM_UP_STEPS = 3


def capture_cuda_graph(
    step: Step, batch: Tensor, generators: Sequence[torch.Generator]
) -> Callable[[], Tensor]:
    """Capture ``step(batch)`` and return what replays it, on what ``batch`` holds then.

    ``generators`` are the CUDA generators that the step draws from; registered, they advance with
    each replay as they would with each step.

    Raises:
        RuntimeError: something in the step cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        output = step(batch)

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def graphed(
    step: Step,
    batch_size: int,
    where: torch.device,
    *,
    generators: Sequence[torch.Generator] = (),
    snapshot: Callable[[], Callable[[], None]],
    capture: Capture = capture_cuda_graph,
) -> Step:
    """Return a step that replays a graph for whole batches, once it is warm.

    A smaller batch is stepped as it is. The result of a replay is overwritten by the next: use it
    before. Should the capture fail, one warning says why and every step is taken as it is;
    ``snapshot()`` is called before the capture and what it returned after a failure, to undo what
    half a step did to the host's view of the optimizer.
    """
    static = torch.zeros(batch_size, dtype=torch.int64, device=where)
    replay: Callable[[], Tensor] | None = None
    warm, failed = 0, False

    def call(batch: Tensor) -> Tensor:
        nonlocal replay, warm, failed
        if failed or len(batch) != batch_size:
            return step(batch)
        if warm < WARM_UP_STEPS:
            warm += 1
            return _on_side_stream(step, batch)
        static.copy_(batch)
        if replay is None:
            undo = snapshot()
            try:
                replay = capture(step, static, generators)
            except RuntimeError as error:
                undo()
                failed = True
                reason = str(error).splitlines()[0]
                warnings.warn(
                    f"no CUDA graph, the steps run one by one: {reason}", RuntimeWarning, 2
                )
                return step(batch)
        return replay()

    return call


def _on_side_stream(step: Step, batch: Tensor) -> Tensor:
    """Take a step where a later capture can follow: autograd remembers its streams."""
    if not batch.is_cuda:
        return step(batch)
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        output = step(batch)
    current.wait_stream(side)
    return output
