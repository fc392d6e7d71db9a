"""A comparison as a value: rows, as a table in a terminal, a notebook or a page, and as a figure."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bayeslora_pyro.diagnostics import page
from bayeslora_pyro.diagnostics.figures_compare import draw_comparison
from bayeslora_pyro.diagnostics.svg import COLOURS, draw_svg

__all__ = ["COLUMNS", "Comparison", "Row"]

Row: TypeAlias = dict[str, Any]
"""What is known of a posterior: ``name`` and its figures."""

COLUMNS: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", ".1%"),
    "rmse": ("RMSE", ".3g"),
    "nll": ("NLL", ".3f"),
    "ece": ("ECE", ".3f"),
    "coverage_90": ("In 90%", ".1%"),
    "elbo": ("ELBO", ".3f"),
    "expected_log_likelihood": ("E log p", ".3f"),
    "kl": ("KL", ".3g"),
    "kl_U": ("KL U", ".3g"),
    "kl_V": ("KL V", ".3g"),
    "kl_W": ("KL W", ".3g"),
    "kl_weight": ("KL weight", "g"),
    "khat": ("k-hat", ".2f"),
    "elpd_loo": ("LOO", ".1f"),
    "se": ("±", ".1f"),
    "p_loo": ("p LOO", ".1f"),
    "elpd_diff": ("Difference", "z.1f"),
    "dse": ("±", ".1f"),
    "weight": ("Weight", ".2f"),
    "bad_k": ("Bad k", "d"),
    "elpd_waic": ("WAIC", ".1f"),
    "p_waic": ("p WAIC", ".1f"),
    "extra_parameters": ("Extra parameters", ",d"),
}
"""The columns in their order: key, heading, and how a figure is written."""

NOTE = "ELBO (untempered) and its parts in nats an item, over the end of the fit; LOO and WAIC in nats of all items."

CAUTION = (
    "LOO and WAIC take the items for the data of the fit. Of items that it has not seen read the NLL instead, or pass "
    "fitted_to."
)

PALETTE = {
    "ink": "#1c2430", "muted": "#5a6472", "line": "#d9d6cd", "paper": "#ffffff",
    "blue": "#1f5fa8", "orange": "#b8501a", "green": "#23785a", "violet": "#6a4c9f",
}  # fmt: skip
"""The colours of the page in light, for a figure outside of it."""


@dataclass(frozen=True, repr=False)
class Comparison:
    """Several posteriors beside one another.

    Args:
        table: A row for each, with ``name``, the keys of ``COLUMNS`` that are known, and ``alarms``.
        fitted: Whether LOO and WAIC are of the training data.
    """

    table: Sequence[Row]
    fitted: bool = False

    def __str__(self) -> str:
        stream = io.StringIO()
        width = 40 + 12 * len(self._columns())
        # By itself rich writes nothing in a notebook, and shows it there instead.
        Console(file=stream, width=width, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().split("\n"))

    def __repr__(self) -> str:
        return str(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for key in self._columns():
            table.add_column(COLUMNS[key][0], justify="right", no_wrap=True)
        for row in self._cells():
            table.add_row(*map(Text, row))
        yield table
        yield from map(Text, self._notes())
        for name, message in self._alarms():
            yield Text(f"{name}: {message}")

    def _repr_html_(self) -> str:
        return "\n".join(self._tables().values())

    def figure(self) -> Figure:
        """Draw LOO with its standard errors, and NLL against ECE (or RMSE), as far as they are known."""
        with mpl.rc_context({"font.size": 9, "legend.frameon": False}):
            figure = Figure(figsize=(9, 3.4), layout="constrained")
            draw_comparison(figure, self.table, PALETTE)
        return figure

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a self-contained page with the table, the figure and the alarms, atomically.

        Args:
            path: The page, by custom with the suffix ``.html``. Missing folders are made.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ", ".join(str(row["name"]) for row in self.table)
        source = page.document(
            "Comparison", f"{len(self.table)} posteriors", f"On the same items: {names}.", self._parts()
        )
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            scratch.write_text(source, encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        return path

    def _tables(self) -> dict[str, page.Html]:
        """The figures and the alarms, by heading."""
        head = ["Posterior", *(COLUMNS[key][0] for key in self._columns())]
        tables = {"In figures": page.table(" ".join(self._notes()), head, self._cells())}
        if rows := [[name, message] for name, message in self._alarms()]:
            head = ["Posterior", "Alarm"]
            tables["Alarms"] = page.table("What should be looked at.", head, rows, prose=True)
        return tables

    def _parts(self) -> list[page.Html]:
        parts = [page.section(title, table) for title, table in self._tables().items()]
        if any(key in row for row in self.table for key in ("nll", "elpd_loo")):
            label = "Leave-one-out estimates with standard errors, and scores of the predictions, of each posterior."
            svg = draw_svg(
                "comparison", label, 780, 290, lambda figure: draw_comparison(figure, self.table, COLOURS)
            )
            caption = (
                "Left: higher is better, bars of one standard error. Right: the lower left is the better."
            )
            parts.insert(1, page.section("At a glance", page.figure(svg, caption)))
        return parts

    def _columns(self) -> list[str]:
        return [key for key in COLUMNS if any(key in row for row in self.table)]

    def _cells(self) -> list[list[str]]:
        return [[str(row["name"]), *(_cell(row, key) for key in self._columns())] for row in self.table]

    def _notes(self) -> list[str]:
        has_loo = any("elpd_loo" in row for row in self.table)
        return [NOTE, CAUTION] if has_loo and not self.fitted else [NOTE]

    def _alarms(self) -> list[tuple[str, str]]:
        return [(str(row["name"]), str(alarm)) for row in self.table for alarm in row.get("alarms", ())]


def _cell(row: Mapping[str, Any], key: str) -> str:
    return format(row[key], COLUMNS[key][1]) if key in row else "–"
