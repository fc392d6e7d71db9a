"""Where cells are done: in processes of this machine, or by Ray, each in a process of its own."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

__all__ = ["ENGINES", "Outcome", "run_processes", "run_ray"]

Given = TypeVar("Given")

PRELOADED = ["bayeslora_pyro.bench.working"]
"""What the server imports that processes are forked from, so that not each has to: torch and the others."""


@dataclass(frozen=True)
class Outcome(Generic[Given]):
    """What came of one piece of work.

    Args:
        given: The piece of work.
        result: What it returned; None if it failed.
        error: Why it failed; None if it did not.
    """

    given: Given
    result: Any = None
    error: str | None = None


def run_processes(
    work: Callable[[Given], Any], pieces: Sequence[Given], workers: int
) -> Iterator[Outcome[Given]]:
    """Does pieces of work in processes of their own, some at a time, and yields what came of each as it ends.

    A process that dies, as one does that is killed for its memory, loses its own piece of work and no other.

    Args:
        work: The work, a function of a module.
        pieces: What it is called with.
        workers: How many processes at a time.
    """
    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(PRELOADED)
    waiting = list(reversed(pieces))
    running: dict[Connection, tuple[Any, Given]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                piece = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_report, args=(work, piece, theirs), daemon=True)
                process.start()
                theirs.close()
                running[ours] = process, piece
            ended = set(wait(list(running)))
            for connection in [each for each in running if each in ended]:
                yield _outcome(connection, *running.pop(connection))
    finally:
        for process, _ in running.values():
            process.terminate()


def _report(work: Callable[[Any], Any], piece: Any, connection: Connection) -> None:
    """Works, and says what came of it."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        message = ("result", work(piece))
    except Exception as error:
        message = ("error", f"{type(error).__name__}: {error}")
    connection.send(message)
    connection.close()


def _end_with_parent() -> None:
    """Ends this process once the one that started it is gone, be it killed: nobody would hear of the work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _outcome(connection: Connection, process: Any, piece: Given) -> Outcome[Given]:
    try:
        kind, content = connection.recv()
    except EOFError:  # it died without a word
        process.join()
        return Outcome(
            piece, error=f"its process ended with code {process.exitcode}, perhaps for want of memory"
        )
    finally:
        connection.close()
    process.join()
    return Outcome(piece, content) if kind == "result" else Outcome(piece, error=content)


def run_ray(work: Callable[[Given], Any], pieces: Sequence[Given], workers: int) -> Iterator[Outcome[Given]]:
    """Does pieces of work on the cluster of Ray that this process is connected to, or on a local one.

    The folder of the benchmark has to be one that all machines of the cluster share.

    Args:
        work: The work.
        pieces: What it is called with.
        workers: How many processors a local cluster has; one that is there already has its own.

    Raises:
        ImportError: If Ray is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(
            "the engine 'ray' needs the package ray: pip install 'bayeslora-pyro[ray]'"
        ) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    try:
        remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0)(_called(work))  # a process for each
        running = {remote.remote(piece): piece for piece in pieces}
        while running:
            (ready,), _ = ray.wait(list(running), num_returns=1)
            piece = running.pop(ready)
            try:
                yield Outcome(piece, ray.get(ready))
            except ray.exceptions.RayError as error:
                yield Outcome(piece, error=_last_line(error))
    finally:
        if is_ours:
            ray.shutdown()


def _called(work: Callable[[Given], Any]) -> Callable[[Given], Any]:
    """The work as a plain function, the only kind that Ray takes."""
    return lambda piece: work(piece)


def _last_line(error: Exception) -> str:
    """What Ray says of a failure, without the traceback of the other process."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


ENGINES: dict[str, Callable[..., Iterator[Outcome[Any]]]] = {"processes": run_processes, "ray": run_ray}
"""The engines by name: each takes `(work, pieces, workers)`."""
