"""The report of a benchmark, from the folders of its cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bayeslora_pyro.bench.cells import Size
from bayeslora_pyro.bench.figures import draw_figures
from bayeslora_pyro.bench.lines import HEADLINE_DRAWS, Group, groups_of
from bayeslora_pyro.bench.published import PUBLISHED_FIGURES
from bayeslora_pyro.bench.rendering import to_csv, to_latex, to_markdown
from bayeslora_pyro.bench.storing import StoredCell, read_cells
from bayeslora_pyro.bench.tables import (
    Table,
    cost_table,
    difference_table,
    main_table,
    mean_table,
    published_table,
)
from bayeslora_pyro.replacing import new_folder

__all__ = ["REPORT", "write_report"]

REPORT = "report"
"""The folder of the report within that of the benchmark."""

MARKDOWN = "tables.md"


def write_report(output: Path, *, num_draws: int = HEADLINE_DRAWS) -> Path:
    """Writes `tables.md`, `tables.tex`, `figures.csv` and the figures into the folder `report`, and returns it.

    Args:
        output: The folder of the benchmark.
        num_draws: The number of draws of all methods that draw, in tables and figures; `figures.csv` has them all.

    Raises:
        ValueError: If there is no finished cell, one is damaged, or cells of one table differ in their protocols.
    """
    cells = read_cells(output)
    groups = groups_of(cells)
    tables = [*_means(groups, num_draws), *(table for group in groups for table in _tables(group, num_draws))]
    tables.append(published_table(PUBLISHED_FIGURES))
    folder = output / REPORT
    with new_folder(folder, MARKDOWN, "*") as target:
        paths = draw_figures(groups, target, num_draws)
        images = "".join(f"![{path.stem}]({path.name})\n" for path in paths)
        page = f"{_about(cells)}\n{to_markdown(tables)}\n### Figures\n\n{images}"
        (target / MARKDOWN).write_text(page, encoding="utf-8")
        (target / "tables.tex").write_text(to_latex(tables), encoding="utf-8")
        (target / "figures.csv").write_text(to_csv(cells), encoding="utf-8")
    return folder


def _means(groups: Sequence[Group], num_draws: int) -> list[Table]:
    """The means over the tasks of each base model, and over all tasks, for each size of the training set."""
    found: dict[tuple[Size, str], list[Group]] = {}
    for group in groups:
        for scope in dict.fromkeys((group.model, "")):
            found.setdefault((group.size, scope), []).append(group)
    several = {size for size, _ in found if len({group.model for group in groups if group.size == size}) > 1}
    wanted = [own for (size, scope), own in found.items() if scope or size in several]
    return [table for own in wanted if (table := mean_table(own, num_draws)) is not None]


def _tables(group: Group, num_draws: int) -> list[Table]:
    tables = []
    for name in group.sets:
        tables.append(main_table(group, name, num_draws))
        difference = difference_table(group, name, num_draws)
        tables += [] if difference is None else [difference]
    return [*tables, cost_table(group)]


def _about(cells: Sequence[StoredCell]) -> str:
    """When, where, with what and by which command it was measured."""

    def each(values: list[str]) -> str:
        return ", ".join(sorted(set(values)))

    records = [stored.record for stored in cells]
    dates = sorted({record["date"] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    machines = [f"{record['machine']['device']}, {record['machine']['cores']} cores" for record in records]
    versions = [", ".join(f"{name} {of}" for name, of in record["versions"].items()) for record in records]
    commands = [f"`bayeslora bench --tier {record['tier']}`" for record in records]
    revisions = [(record["revision"] or "not from git")[:12] for record in records]
    hours = sum(record["seconds"] for record in records) / 3600
    return (
        f"## Measured\n\n{when}, on {each(machines)}, with {each(commands)}, which may have been cut to a part; "
        f"{len(cells):,} cells, {hours:.1f} hours of one thread. Revision {each(revisions)}; {each(versions)}.\n"
    )
