"""A progress bar that shows the parts of the ELBO."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["progress_bar"]


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("– step/s" if speed is None else f"{speed:.1f} step/s")


def _describe(row: dict[str, Any]) -> str:
    parts = [f"E[log lik] {row['expected_log_likelihood']:.3f}"]
    parts += [
        f"{name.replace('_', ' ').upper()} {row[name]:.2f}"
        for name in row
        if name.startswith("kl_") and name != "kl_weight"
    ]
    text = f"ELBO {row['elbo']:.2f} = " + " − ".join(parts)
    return text if row["kl_weight"] == 1 else text + f"  (KL weight {row['kl_weight']:.3g})"


@contextmanager
def progress_bar(
    total: int, completed: int, *, enabled: bool, console: Console | None = None
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that takes a row of the history and moves the bar by one step."""
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, disable=not enabled, transient=False) as progress:
        task = progress.add_task("", total=total, completed=completed)

        def advance(row: dict[str, Any]) -> None:
            progress.update(task, advance=1, description=_describe(row))

        yield advance
