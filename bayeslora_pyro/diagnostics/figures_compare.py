"""The figure of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_comparison"]

SERIES = ("blue", "orange", "green", "violet", "ink")
MARKERS = ("o", "s", "^", "D")
"""Those of the first posteriors, and of as many more, to whom the same colours come again."""


def draw_comparison(figure: Figure, table: Sequence[Mapping[str, Any]], colours: Mapping[str, str]) -> None:
    """Fill a figure with LOO and its standard errors on the left, and two scores of the predictions on the right.

    Args:
        figure: The figure.
        table: The rows of a comparison.
        colours: The colours by name.
    """
    shades = [colours[SERIES[i % len(SERIES)]] for i in range(len(table))]
    markers = [MARKERS[i // len(SERIES) % len(MARKERS)] for i in range(len(table))]
    second = next((key for key in ("ece", "rmse") if all(key in row for row in table)), None)
    panels = [any("elpd_loo" in row for row in table), second is not None]
    if not any(panels):
        panels = [True, False]
    axes = list(figure.subplots(1, sum(panels), squeeze=False).flat)
    if panels[0]:
        _loo(axes.pop(0), table, shades, markers)
    if panels[1]:
        _scores(axes.pop(0), table, shades, markers, str(second))


def _loo(
    axes: Axes, table: Sequence[Mapping[str, Any]], shades: Sequence[str], markers: Sequence[str]
) -> None:
    for place, (row, shade, marker) in enumerate(zip(table, shades, markers, strict=True)):
        if "elpd_loo" in row:
            axes.errorbar(row["elpd_loo"], place, xerr=row["se"], fmt=marker, color=shade, capsize=0)
    axes.set_yticks(range(len(table)), [str(row["name"]) for row in table])
    axes.set(xlabel="expected log predictive density (LOO), nats", ylim=(len(table) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)


def _scores(
    axes: Axes,
    table: Sequence[Mapping[str, Any]],
    shades: Sequence[str],
    markers: Sequence[str],
    second: str,
) -> None:
    for row, shade, marker in zip(table, shades, markers, strict=True):
        axes.scatter(row[second], row["nll"], 40, color=shade, marker=marker, label=str(row["name"]))
    names = {"ece": "calibration error (ECE)", "rmse": "root mean squared error"}
    axes.set(xlabel=names[second], ylabel="negative log-likelihood")
    axes.margins(0.2)
    axes.legend()
