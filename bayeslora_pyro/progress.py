"""A progress bar that shows the parts of the ELBO."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import monotonic

from rich import get_console
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

__all__ = ["progress_bar"]

LINES = 10
"""How many lines a run writes into a log, where a bar cannot move."""

BAR_WIDTH = 6


@contextmanager
def progress_bar(
    total: int, completed: int = 0, *, enabled: bool = True, console: Console | None = None
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Yields a function that takes a row of the history and moves the bar by one step.

    The bar is one line, as long as the console is wide: the less room there is, the fewer parts of the ELBO it names.
    In a file, where nothing can move, there is a line now and then.

    Args:
        total: The number of steps.
        completed: How many of them are done already.
        enabled: Whether to show anything.
        console: Where to; by default, where `rich` writes.
    """
    screen = console or get_console()
    pace = _Pace(total, completed)
    if not enabled:
        yield lambda row: None
    elif screen.is_terminal or screen.is_jupyter:
        line = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True))
        with Progress(BarColumn(bar_width=BAR_WIDTH), line, console=screen) as progress:
            task = progress.add_task(f"{completed}/{total}", total=total, completed=completed)

            def move(row: Mapping[str, float]) -> None:
                pace.advance()
                progress.update(task, advance=1, description=_line(pace, row, screen.width - BAR_WIDTH - 1))

            yield move
    else:

        def write(row: Mapping[str, float]) -> None:
            pace.advance()
            if pace.done == total or pace.done * LINES // total > (pace.done - 1) * LINES // total:
                screen.print(_line(pace, row, screen.width), markup=False, highlight=False, soft_wrap=True)

        yield write


class _Pace:
    """How far a run is, and how fast."""

    def __init__(self, total: int, completed: int) -> None:
        self.total, self.first, self.done = total, completed, completed
        self.started = monotonic()

    def advance(self) -> None:
        self.done += 1

    def __str__(self) -> str:
        rate = (self.done - self.first) / max(monotonic() - self.started, 1e-9)
        digits = 0 if rate >= 100 else 1 if rate >= 10 else 2
        minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
        return f"{self.done:>{len(str(self.total))}}/{self.total} {rate:.{digits}f} step/s {minutes}:{seconds:02}"


def _line(pace: _Pace, row: Mapping[str, float], room: int) -> str:
    """The longest text that fits; the shortest, if none does."""
    texts = [f"{pace}  {text}" for text in _texts(row)]
    return next((text for text in texts if len(text) <= room), texts[-1])


def _texts(row: Mapping[str, float]) -> list[str]:
    """The ELBO in nats per item and its parts, from long to short."""
    elbo, data = f"ELBO {_number(row['elbo'])}", _number(row["expected_log_likelihood"])
    names = [name for name in row if name.startswith("kl_") and name != "kl_weight"]
    parts = [f"{name.replace('kl_', 'KL ')} {_number(row[name])}" for name in names]
    by_part = " − ".join([data, *parts])
    notes = [] if row["kl_weight"] == 1 else [f"KL weight {row['kl_weight']:.2g}"]
    more = [*notes, f"gradient {row['grad_norm']:.3g}"] if "grad_norm" in row else notes
    return [
        f"{elbo} = E[log lik] {by_part} ({', '.join(more)})" if more else f"{elbo} = E[log lik] {by_part}",
        f"{elbo} = E[log lik] {by_part} ({notes[0]})" if notes else f"{elbo} = E[log lik] {by_part}",
        f"{elbo} = {by_part}",
        f"{elbo} = {data} − KL {_number(row['kl'])}",
        elbo,
    ]


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
