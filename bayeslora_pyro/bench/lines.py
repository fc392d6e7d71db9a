"""From finished cells to lines of a table: one for each way a method was read, with its figures over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bayeslora_pyro.bench.cells import Size
from bayeslora_pyro.bench.scoring import MANY, MEAN, PLAIN, SCALED
from bayeslora_pyro.bench.storing import StoredCell
from bayeslora_pyro.bench.tiers import ALL

__all__ = ["HEADLINE_DRAWS", "LOWER", "METRICS", "Group", "Line", "groups_of", "headlines", "lines_of"]

HEADLINE_DRAWS = 10
"""The number of draws of the main tables, as is usual."""

METRICS = (
    "accuracy",
    "nll",
    "ece",
    "brier",
    "aurc",
    "ece_10",
    "ece_20",
    "ece_adaptive",
    "auroc_entropy",
    "auroc_information",
)
"""The figures of a row."""

LOWER = ("nll", "ece", "brier", "aurc", "ece_10", "ece_20", "ece_adaptive")
"""Those of which less is better."""

MEANS_SHOWN = ("blob",)
"""The methods whose mean is published beside their draws."""


@dataclass(frozen=True)
class Group:
    """Cells that may be compared: one task, base model, size and protocol."""

    task: str
    model: str
    size: Size
    cells: tuple[StoredCell, ...]

    @property
    def name(self) -> str:
        """A name for files."""
        first = self.cells[0].cell.name
        return first[: first.index(f"_{self.cells[0].cell.method}_")]

    @property
    def sets(self) -> list[str]:
        """The sets that were scored, the test set first."""
        return list(dict.fromkeys(row["set"] for row in self.cells[0].rows))

    @property
    def blob_compat(self) -> bool:
        """Whether the quirks of the published evaluation were repeated."""
        return self.cells[0].protocol.blob_compat


@dataclass
class Line:
    """The figures of a method, read in one way, on one set.

    Args:
        method: The method.
        variant: How its predictions were read; see :mod:`~bayeslora_pyro.bench.scoring`.
        draws: The number of draws; 0 at the mean.
        set: The set.
        members: The number of members of an ensemble; 1 for a single model.
        rows: The row of each seed, by seed.
        costs: The costs of each seed.
    """

    method: str
    variant: str
    draws: int
    set: str
    members: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    costs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What it is called in a table."""
        suffix = {PLAIN: "", SCALED: " + temperature", MEAN: " (mean)", MANY: f" ({self.draws:,} draws)"}
        return self.method + suffix[self.variant]

    @property
    def mark(self) -> str:
        """What it has that others have not: further labels, further fits or members."""
        return ("†" if self.variant == SCALED else "") + ("‡" if self.members > 1 else "")

    def values(self, metric: str) -> list[float]:
        """A figure, for each seed that has it."""
        return [row[metric] for row in self.rows.values() if row.get(metric) is not None]

    def mean(self, metric: str) -> float | None:
        """The mean of a figure over seeds."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """The standard deviation of a figure over seeds; None for a single one."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def cost(self, *path: str) -> float | None:
        """The median of a cost over seeds."""
        found = [_at(costs, path) for costs in self.costs]
        known = [value for value in found if value is not None]
        return statistics.median(known) if known else None


def groups_of(cells: Iterable[StoredCell]) -> list[Group]:
    """Puts together the cells that may be compared.

    Raises:
        ValueError: If two of them were done by different protocols, and so may not.
    """
    found: dict[tuple[str, str, Size], list[StoredCell]] = {}
    for stored in cells:
        found.setdefault((stored.cell.task, stored.cell.model, stored.cell.size), []).append(stored)
    groups = []
    for (task, model, size), members in found.items():
        for other in members[1:]:
            if other.protocol != members[0].protocol:
                raise ValueError(
                    f"{other.folder.name} was done by another protocol than {members[0].folder.name}: the two are not "
                    "to be compared. Do one of them anew with overwrite, or report them from folders of their own."
                )
        groups.append(Group(task, model, size, tuple(sorted(members, key=_place))))
    return sorted(
        groups, key=lambda group: (group.task, group.model, group.size == "all", str(group.size).zfill(9))
    )


def lines_of(group: Group, name: str) -> list[Line]:
    """All lines of a set, in the order of the methods."""
    lines: dict[tuple[str, str, int], Line] = {}
    for stored in group.cells:
        for row in stored.rows:
            if row["set"] != name:
                continue
            key = stored.cell.method, row["variant"], row["draws"]
            line = lines.setdefault(key, Line(*key, name, stored.record["members"]))
            line.rows[stored.cell.seed] = row
            line.costs.append(stored.costs)
    return list(lines.values())


def headlines(lines: Sequence[Line], num_draws: int = HEADLINE_DRAWS) -> Iterator[Line]:
    """Those of the main tables, first the methods as they are."""
    shown = [line for line in lines if _is_headline(line, num_draws)]
    yield from (line for line in shown if line.variant != SCALED)
    yield from (line for line in shown if line.variant == SCALED)


def _is_headline(line: Line, num_draws: int) -> bool:
    """Whether a line is one of the main tables: draws of the usual number, or what has a number of its own."""
    if line.variant == MEAN:
        return line.method in MEANS_SHOWN
    if line.variant == SCALED and line.members > 1:
        return False
    return line.variant == MANY or line.draws == num_draws or not _is_sampled(line)


def _is_sampled(line: Line) -> bool:
    """Whether the number of draws is a choice: a point has one, and an ensemble as many as members."""
    return line.members == 1 and not _is_point(line)


def _is_point(line: Line) -> bool:
    return all(costs["inference"]["draws"] == 1 for costs in line.costs)


def _place(stored: StoredCell) -> tuple[int, int]:
    method = stored.cell.method
    return (ALL.index(method) if method in ALL else len(ALL), stored.cell.seed)


def _at(costs: Any, path: Sequence[str]) -> float | None:
    for name in path:
        costs = None if costs is None else costs.get(name)
    return None if costs is None else float(costs)
