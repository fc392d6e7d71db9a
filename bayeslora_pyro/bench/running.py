"""A run of the benchmark: what is left to do, doing it, and what may not be done over."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bayeslora_pyro.bench.cells import FASTER
from bayeslora_pyro.bench.contenders import describe
from bayeslora_pyro.bench.engines import ENGINES, Outcome
from bayeslora_pyro.bench.storing import CELLS, DamagedCell, StoredCell, read_cell
from bayeslora_pyro.bench.tiers import Job
from bayeslora_pyro.bench.working import FITS, Task, do, fit_name
from bayeslora_pyro.tasks import faster_dtype

__all__ = ["OtherCell", "left_to_do", "run_jobs", "with_dtype"]


class OtherCell(ValueError):
    """A cell that was done in another way than the one that is asked for."""


def with_dtype(jobs: Sequence[Job], output: Path) -> list[Job]:
    """Settles which dtype the faster one is: that of the cells that are there already, or the one that is so now.

    Args:
        jobs: The jobs.
        output: The folder of the benchmark.
    """
    wanted = [job for job in jobs if job.protocol.dtype == FASTER]
    if not wanted:
        return list(jobs)
    known = (_known(output, job) for job in wanted)
    dtypes = [stored.protocol.dtype for stored in known if stored is not None]
    dtype = dtypes[0] if dtypes else str(faster_dtype()).removeprefix("torch.")
    return [
        replace(job, protocol=replace(job.protocol, dtype=dtype)) if job in wanted else job for job in jobs
    ]


def left_to_do(jobs: Sequence[Job], output: Path, *, overwrite: bool = False) -> list[Job]:
    """The jobs without a finished cell; damaged cells are done anew.

    Args:
        jobs: The jobs.
        output: The folder of the benchmark.
        overwrite: Whether cells that were done in another way are done anew too.

    Raises:
        OtherCell: If a cell was done in another way, with the first thing that differs.
    """
    left = []
    for job in jobs:
        stored = _known(output, job)
        difference = None if stored is None else _difference(job, stored)
        if difference is not None and not overwrite:
            name, known, asked = difference
            raise OtherCell(
                f"{job.cell.name} was done with {name}={known!r}, and now it is {asked!r}: choose another output, ask "
                "for what it has, or do it anew with overwrite."
            )
        if stored is None or difference is not None:
            left.append(job)
    return left


def run_jobs(
    jobs: Sequence[Job],
    output: Path,
    *,
    tier: str = "",
    data_dir: Path | None = None,
    workers: int | None = None,
    engine: str = "processes",
    done: Callable[[Outcome[Task]], None] = lambda _: None,
) -> list[Outcome[Task]]:
    """Does jobs, each in a process of its own, and returns those that failed.

    A run that is killed goes on where it was: finished cells are left alone, and an unfinished fit goes on from its
    last checkpoint, to the same numbers.

    Args:
        jobs: What :func:`left_to_do` returned.
        output: The folder of the benchmark.
        tier: The tier that was asked for, for the record.
        data_dir: A folder of local files, for the tasks that are not packaged.
        workers: How many cells at a time; by default as many as there are cores.
        engine: A key of :data:`~bayeslora_pyro.bench.engines.ENGINES`.
        done: Called with what came of each.
    """
    if engine not in ENGINES:
        raise ValueError(f"there is no engine {engine!r}: use one of {', '.join(ENGINES)}.")
    tasks = [Task(job, output.resolve(), data_dir and data_dir.resolve(), tier) for job in jobs]
    failed = []
    for outcome in ENGINES[engine](do, tasks, workers or os.cpu_count() or 1):
        done(outcome)
        if outcome.error is not None:
            failed.append(outcome)
    if not failed:
        _remove_fits(jobs, output)
    return failed


def _remove_fits(jobs: Sequence[Job], output: Path) -> None:
    """Removes the fits of jobs that are all done, and no others: another run may be at work in the same folder."""
    for job in jobs:
        for path in (output / FITS).glob(f"{fit_name(job)}*"):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        (output / FITS).rmdir()


def _known(output: Path, job: Job) -> StoredCell | None:
    """The finished cell of a job; None where there is none, or no whole one."""
    try:
        return read_cell(output / CELLS / job.cell.name)
    except (FileNotFoundError, DamagedCell):
        return None


def _difference(job: Job, stored: StoredCell) -> tuple[str, Any, Any] | None:
    """The first thing in which a stored cell differs from what is asked: its name, its value there and here."""
    asked = {"model": job.cell.model, **job.protocol.record(), "method": describe(job.cell, job.protocol)}
    known = {
        "model": stored.cell.model,
        **stored.protocol.record(),
        "method": stored.record.get("method"),
    }
    return next(_differences(known, asked), None)


def _differences(known: Any, asked: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """All leaves in which two nested records differ, by their path."""
    if isinstance(known, dict) and isinstance(asked, dict):
        for key in {**known, **asked}:
            yield from _differences(known.get(key), asked.get(key), f"{name}.{key}" if name else key)
    elif known != asked:
        yield name, known, asked
