"""`bayeslora bench`: every method on the same data, and a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayeslora_pyro.bench.engines import Outcome
from bayeslora_pyro.bench.report import write_report
from bayeslora_pyro.bench.running import left_to_do, run_jobs, with_dtype
from bayeslora_pyro.bench.tiers import Job, select_jobs
from bayeslora_pyro.bench.working import Task
from bayeslora_pyro.cli.errors import blame
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, working

__all__ = ["run"]

_AXES = ("tasks", "models", "methods", "sizes", "seeds")
_CHANGES = ("num_steps", "num_tuning", "num_test", "num_shift", "dtype", "blob_compat")


def run(plan: Plan) -> None:
    """Does the cells that are left, and writes the report."""
    options = plan.options
    with blame(_given(options)):
        jobs = select_jobs(options["tier"], **{name: options[name] for name in (*_AXES, *_CHANGES)})
        jobs = with_dtype(jobs, plan.folder)
    with blame(f"--output {plan.folder}"):
        left = left_to_do(jobs, plan.folder, overwrite=options["overwrite"])
    say(f"{len(jobs)} cells, {len(jobs) - len(left)} of them done.")
    if options["list"]:
        for job in left:
            say(job.cell.name)
        return
    failed = _do(left, plan)
    with working("writing the report"):
        written = write_report(plan.folder) if len(failed) < len(jobs) else None
    if written is not None:
        say(f"Wrote {written / 'tables.md'}, with LaTeX, CSV and figures beside it.")
    if failed:
        raise OSError(
            f"{len(failed)} of {len(jobs)} cells failed, the first, {failed[0].given.job.cell.name}, with: "
            f"{failed[0].error} (the same command goes on with what is left)"
        )


def _do(left: Sequence[Job], plan: Plan) -> list[Outcome[Task]]:
    """Does cells, with a line for each; returns those that failed."""
    options, ended = plan.options, 0

    def done(outcome: Outcome[Task]) -> None:
        nonlocal ended
        ended += 1
        result = outcome.result
        said = (
            f"failed: {outcome.error}"
            if result is None
            else f"accuracy {result['accuracy']:.3f}, NLL {result['nll']:.3f}, ECE {result['ece']:.3f}, "
            f"{result['seconds']:.0f} s"
        )
        say(f"{ended}/{len(left)} {outcome.given.job.cell.name}: {said}")

    with blame(f"--engine {options['engine']}"):
        return run_jobs(
            left,
            plan.folder,
            tier=options["tier"],
            data_dir=None if options["data_dir"] is None else Path(options["data_dir"]),
            workers=options["workers"],
            engine=options["engine"],
            done=done,
        )


def _given(options: Any) -> str:
    """The flags that say what cells there are."""
    given = {name: options[name] for name in ("tier", *_AXES) if options[name] is not None}
    return " ".join(
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
    )
