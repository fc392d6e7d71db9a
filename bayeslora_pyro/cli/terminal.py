"""What is shown: facts and tables on standard output; progress and complaints on standard error."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

__all__ = [
    "complain",
    "figures",
    "only_first_speaks",
    "quiet_libraries",
    "say",
    "show_facts",
    "show_table",
    "tracked",
    "working",
]

_LIBRARIES = ("transformers", "peft", "torch", "arviz", "huggingface_hub", "bitsandbytes")


def say(message: str) -> None:
    """Writes a line, wrapped to the width of the terminal."""
    Console(highlight=False, soft_wrap=not sys.stdout.isatty()).print(Text(message))


def complain(message: str) -> None:
    """Writes one line to standard error, whatever it holds."""
    sys.stderr.write(f"bayeslora: {' '.join(message.split())}\n")


@contextmanager
def only_first_speaks() -> Iterator[None]:
    """Keeps standard output to the first of the processes that a launcher has started."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def show_facts(facts: Mapping[str, str]) -> None:
    """Writes names and what is to be said of them, one below the other."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts.items():
        grid.add_row(name, Text(value))
    Console(highlight=False).print(grid)


def show_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table whose first column is text and whose others are figures."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def figures(value: float | int | None) -> str:
    """A figure for a table."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"


@contextmanager
def working(message: str) -> Iterator[None]:
    """Shows, on a terminal, that something takes its time."""
    with Console(stderr=True, highlight=False).status(message, spinner="dots", spinner_style="dim"):
        yield


def tracked(loader: Any, name: str) -> Iterator[Any]:
    """Yields the batches of a loader, with a bar on a terminal that vanishes at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    if not console.is_terminal:  # some versions of rich write an empty line even when they are disabled
        yield from loader
        return
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(loader, total=len(loader), description=name)


class _Notes(logging.Handler):
    """Shows what this library logs."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Keeps what other libraries warn of out of the output, and shows what this one has to say in one line each."""
    own, handler = logging.getLogger("bayeslora_pyro"), _Notes(logging.INFO)
    others = [] if debug else [logging.getLogger(name) for name in _LIBRARIES]
    levels = [(logger, logger.level) for logger in (own, *others)]
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    for logger in others:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"bayeslora_pyro\.cli")
        warnings.showwarning = _show_warning
        try:
            yield
        finally:
            own.removeHandler(handler)
            for logger, level in levels:
                logger.setLevel(level)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    complain(f"note: {message}")
