"""The figures of a report about predicted numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.svg import COLOURS, SERIES, draw_svg

__all__ = ["coverage_figure", "prediction_figure", "spread_figure"]

Array: TypeAlias = NDArray[Any]

MOST_ITEMS = 200
"""How many error bars a figure bears."""

DIAGONAL: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 1, "linestyle": (0, (4, 3))}


def prediction_figure(mean: Array, std: Array, observed: Array) -> str:
    """Draw predictions with their standard deviation against what was observed, of some 200 items at most."""
    shown = np.argsort(observed)[:: -(-len(observed) // MOST_ITEMS)]

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        low = min(float(observed.min()), float((mean - std)[shown].min()))
        high = max(float(observed.max()), float((mean + std)[shown].max()))
        axes.plot([low, high], [low, high], **DIAGONAL)
        bars = (mean - std)[shown], (mean + std)[shown]
        axes.vlines(observed[shown], *bars, color=COLOURS["blue"], linewidth=1, alpha=0.35)
        axes.scatter(observed[shown], mean[shown], 14, color=COLOURS["blue"], zorder=3)
        axes.set(xlabel="observed", ylabel="predicted")

    label = "Predicted against observed numbers with error bars; on the diagonal a prediction is right."
    return draw_svg("predicted", label, 380, 400, plot)


def coverage_figure(levels: Mapping[str, Array]) -> str:
    """Draw the share of observations in central intervals against their level, for each set.

    Args:
        levels: By set, the level of the smallest interval that holds each observation, `(item,)`.
    """

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        grid = np.linspace(0, 1, 201)
        items = len(next(iter(levels.values())))
        half = 1.96 * np.sqrt(grid * (1 - grid) / items)
        band = np.clip(grid - half, 0, 1), np.clip(grid + half, 0, 1)
        axes.fill_between(grid, *band, color=COLOURS["muted"], alpha=0.14, linewidth=0)
        axes.plot([0, 1], [0, 1], **DIAGONAL)
        for i, (name, values) in enumerate(levels.items()):
            share = np.searchsorted(np.sort(values), grid, side="right") / len(values)
            axes.plot(grid, share, color=COLOURS[SERIES[i % len(SERIES)]], label=name)
        axes.set(xlabel="level of the interval", ylabel="observations inside", xlim=(0, 1), ylim=(0, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(levels) > 1:
            axes.legend(loc="upper left")

    label = f"Coverage of the predictive intervals of {', '.join(levels)}; the diagonal is calibrated."
    return draw_svg("coverage", label, 380, 400, plot)


def spread_figure(std: Array, error: Array, num_groups: int = 8) -> str:
    """Draw the root mean squared error of items of like predicted deviation against that deviation."""
    groups = np.array_split(np.argsort(std, kind="stable"), min(num_groups, len(std)))
    predicted = np.sqrt([np.square(std[group]).mean() for group in groups])
    found = np.sqrt([np.square(error[group]).mean() for group in groups])

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        top = 1.08 * max(predicted.max(), found.max())
        axes.plot([0, top], [0, top], **DIAGONAL)
        axes.plot(predicted, found, "o-", color=COLOURS["blue"], markersize=5)
        axes.set(xlabel="predicted standard deviation", ylabel="root mean squared error")
        axes.set(xlim=(0, top), ylim=(0, top))

    return draw_svg(
        "spread", "Error against predicted deviation; the diagonal is calibrated.", 380, 270, plot
    )
