"""A command as a process: the streams that it prints to, and the signals that end it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Of a shell that has gone and of a cluster's manager; Ctrl-C is SIGINT, which Python handles.
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP, which end a command as Ctrl-C does: by way of every ``finally``.

    Attributes:
        exit_code: 128 + the signal's number, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP raise `Ended` in this block; later ones, while it ends, do nothing.

    A signal that is ignored (nohup) or that somebody handles stays so. Only the main thread can
    receive signals: in another one this does nothing.
    """
    ours = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []

    def end(number: int, frame: FrameType | None) -> None:
        for each in ours:  # a cluster's manager sends several
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


class _Lasting(io.FileIO):
    """The end of a stream whose reader may go: what is written after that is lost, no more."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        # A terminal that has been closed gives EIO; from a file that is a damaged disk.
        self._gone = (errno.EPIPE, errno.EIO) if self.isatty() else (errno.EPIPE,)

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._gone:
                raise
            return memoryview(data).nbytes


def open_streams() -> None:
    """Make standard output and standard error such that printing to them ends no command.

    A training's records go to files, and its exit code is its answer: so a command whose reader has
    gone (``| head -1``, a closed terminal) goes on to its end and prints to nobody. A stream that
    was closed from the start (``>&-``) is /dev/null. Characters that a stream cannot encode are
    replaced. Streams that somebody has put in their place are left alone, as tests do.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        if stream is None:
            mode = "r" if name == "stdin" else "w"
            stream = open(os.devnull, mode, encoding="utf-8", errors="replace")  # noqa: SIM115
            # It has the closed one's number, which no file of ours may have in a worker, either.
            os.set_inheritable(stream.fileno(), True)
        elif name != "stdin":
            stream.flush()
            stream = io.TextIOWrapper(
                io.BufferedWriter(_Lasting(stream.fileno())),
                encoding=stream.encoding,
                errors="replace" if name == "stdout" else stream.errors,
                line_buffering=stream.line_buffering or stream.write_through,
            )
        setattr(sys, name, stream)
