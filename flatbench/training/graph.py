"""One training step as a CUDA graph: captured after a warm-up of real steps, then replayed.

The warm-up steps are the run's own first steps, taken as they are; a capture executes nothing; so
a run is the same sequence of steps with graphs as without. What a replay needs to find where the
capture found it is static: the batch's indices here, the model, its gradients' memory (the graph's
own pool), the optimizer's tables and the learning rate (device tensors).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

from flatbench.training.devices import synchronise

Step = Callable[[Tensor], Tensor]  # indices of a batch [B] -> a tensor of sums
# step, batch, generators, and the stream of the warm-up steps -> what replays the step
Capture = Callable[
    [Step, Tensor, Sequence[torch.Generator], torch.cuda.Stream | None], Callable[[], Tensor]
]

WARM_UP_STEPS = 3


def capture_cuda_graph(
    step: Step,
    batch: Tensor,
    generators: Sequence[torch.Generator],
    stream: torch.cuda.Stream | None = None,
) -> Callable[[], Tensor]:
    """Capture ``step(batch)`` and return what replays it, on what ``batch`` holds then.

    ``generators`` are the CUDA generators that the step draws from; they advance with each replay
    as they would with each step. Should the capture fail, the current stream, the allocator and
    the generators are as they were before it.

    Raises:
        RuntimeError: something in the step cannot be captured.
    """
    where = batch.device
    # torch puts the device's default generator in capture mode whether it is used or not.
    every = [*generators, torch.cuda.default_generators[where.index]]
    states = [(generator, generator.get_state()) for generator in every]
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    _register(graph, generators)
    with ExitStack() as on_failure:
        before = torch.cuda.current_stream(where)
        on_failure.callback(_leave_capture, graph, pool, before, states)
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            output = step(batch)
        on_failure.pop_all()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _register(graph: torch.cuda.CUDAGraph, generators: Sequence[torch.Generator]) -> None:
    """Tell the graph which generators its step draws from, where torch doesn't find out itself."""
    if torch.__version__ >= "2.14":  # compared as versions
        return  # it finds out, and the call is deprecated
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for generator in generators:
            graph.register_generator_state(generator)


def _leave_capture(
    graph: torch.cuda.CUDAGraph,
    pool: Any,
    stream: torch.cuda.Stream,
    states: Sequence[tuple[torch.Generator, Tensor]],
) -> None:
    """Undo what torch leaves behind when the end of a capture fails.

    `torch.cuda.graph` puts the stream back only after a capture that ended well. So it does with
    the generators, which refuse to draw until they are out of capture mode, and with the allocator,
    whose `torch.cuda.empty_cache` fails until then.
    """
    torch.cuda.set_stream(stream)
    graph.reset()
    with suppress(RuntimeError):  # the capture had ended, or reset has done this (torch 2.14)
        torch._C._cuda_endAllocateToPool(stream.device.index, pool)
        torch._C._cuda_releasePool(stream.device.index, pool)
    for generator, state in states:
        # set_state would write into the state that is in capture mode; this replaces it.
        fresh = torch.Generator(generator.device)
        fresh.set_state(state)
        generator.graphsafe_set_state(fresh)


def graphed(
    step: Step,
    batch_size: int,
    where: torch.device,
    *,
    generators: Sequence[torch.Generator] = (),
    snapshot: Callable[[], Callable[[], None]],
    capture: Capture = capture_cuda_graph,
    after_capture: Callable[[], None] = lambda: None,
    on_time: Callable[[float], None] = lambda seconds: None,
) -> Step:
    """Return a step that replays a graph for whole batches, once it is warm.

    A smaller batch is stepped as it is. The result of a replay is overwritten by the next: use it
    before. Should the capture fail, one warning says why and every step is taken as it is.

    Args:
        step: takes a step on the indices of a batch.
        batch_size: of a whole batch.
        where: the device that the step works on.
        generators: the generators that the step draws from.
        snapshot: is called before the capture; what it returned is called after a failure, to
            undo what half a step did to the host's view of the optimizer.
        capture: captures the step.
        after_capture: is called once between a successful capture and its first replay.
        on_time: is called with the seconds that the capture took, failed or not.
    """
    # One stream for all: autograd remembers where a gradient was accumulated, and cuBLAS keeps a
    # workspace for each stream. The capture finds both as the warm-up steps have left them.
    side: torch.cuda.Stream | None = None
    if where.type == "cuda":
        side = torch.cuda.Stream(where)  # type: ignore[no-untyped-call]
    static: Tensor
    replay: Callable[[], Tensor] | None = None
    warm, failed = 0, False

    def call(batch: Tensor) -> Tensor:
        nonlocal replay, static, warm, failed
        if failed or len(batch) != batch_size:
            return step(batch)
        if warm < WARM_UP_STEPS:
            warm += 1
            return step(batch) if side is None else _on_stream(side, step, batch)
        if replay is not None:
            static.copy_(batch)
            return replay()
        synchronise(where)  # the clock must not count the steps that are still under way
        start = time.perf_counter()
        static = batch.clone()
        undo = snapshot()
        try:
            replay = capture(step, static, generators, side)
        except RuntimeError as error:
            undo()
            failed = True
            warnings.warn(
                f"no CUDA graph, the steps run one by one: {_reason(error)}", RuntimeWarning, 2
            )
        else:
            after_capture()
        synchronise(where)
        on_time(time.perf_counter() - start)
        return step(batch) if replay is None else replay()

    return call


def _reason(error: BaseException) -> str:
    """Return one line of what broke the capture; its end raises an error of its own after that."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return (str(error) or type(error).__name__).splitlines()[0]


def _on_stream(side: torch.cuda.Stream, step: Step, batch: Tensor) -> Tensor:
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        output = step(batch)
    current.wait_stream(side)
    return output
