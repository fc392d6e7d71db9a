"""Tables as Markdown and as LaTeX, and all figures as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from bayeslora_pyro.bench.cells import short_name
from bayeslora_pyro.bench.lines import METRICS
from bayeslora_pyro.bench.storing import StoredCell
from bayeslora_pyro.bench.tables import Table, Text

__all__ = ["to_csv", "to_latex", "to_markdown"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "_": r"\_",
    "#": r"\#",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "×": r"$\times$",
    "Δ": r"$\Delta$",
    "→": r"$\to$",
}

COSTS = {
    "parameters_total": ("parameters", "total"),
    "parameters_extra": ("parameters", "extra"),
    "step_ratio": ("step", "ratio"),
    "inference_ratio": ("inference", "ratio"),
    "inference_draws": ("inference", "draws"),
    "inference_ms_per_item": ("inference", "ours_ms_per_item"),
    "fit_seconds": ("fit_seconds",),
    "finish_seconds": ("finish_seconds",),
    "predict_seconds": ("predict_seconds",),
    "peak_memory_mb": ("peak_memory_mb",),
}
"""The columns of costs, and where they stand in `costs.json`."""


def to_markdown(tables: Sequence[Table]) -> str:
    """The tables as a page of Markdown."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    head = f"| {' | '.join(table.columns)} |"
    rule = f"|---|{'--:|' * (len(table.columns) - 1)}"
    rows = [
        f"| {' | '.join(f'**{each.text}**' if each.is_best else each.text for each in row)} |"
        for row in table.rows
    ]
    return "\n".join([f"### {table.title}", "", head, rule, *rows, "", table.note, ""])


def to_latex(tables: Sequence[Table]) -> str:
    """The tables for LaTeX, with `booktabs`."""
    return "\n".join(map(_latex, tables))


def _latex(table: Table) -> str:
    rows = [" & ".join(map(_latex_text, row)) + r" \\" for row in table.rows]
    lines = [
        r"\begin{table}",
        rf"\caption{{{_escaped(table.title)}. {_escaped(table.note)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        " & ".join(map(_escaped, table.columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _latex_text(content: Text) -> str:
    text = _escaped(content.text)
    return rf"\textbf{{{text}}}" if content.is_best else text


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_csv(cells: Sequence[StoredCell]) -> str:
    """All figures of all cells, a row for each set, way to read the predictions, and number of draws."""
    stream = io.StringIO()
    columns = ["task", "model", "size", "method", "seed", "set", "variant", "draws", "members", "blob_compat"]
    columns += ["temperature", "n", *METRICS, *COSTS, "date", "revision"]
    writer = csv.DictWriter(stream, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for stored in cells:
        shared = {
            "task": stored.cell.task,
            "model": short_name(stored.cell.model),
            "size": stored.cell.size,
            "method": stored.cell.method,
            "seed": stored.cell.seed,
            "members": stored.record["members"],
            "blob_compat": stored.protocol.blob_compat,
            "date": stored.record["date"],
            "revision": stored.record["revision"],
            **{name: _at(stored.costs, path) for name, path in COSTS.items()},
        }
        writer.writerows(shared | row for row in stored.rows)
    return stream.getvalue()


def _at(costs: Any, path: Sequence[str]) -> Any:
    for name in path:
        costs = None if costs is None else costs.get(name)
    return costs
