"""The forest plot: how large the update of each adapter is, under the posterior and under the prior."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.svg import COLOURS, draw_svg

__all__ = ["forest_figure", "short_names"]


def forest_figure(modules: Sequence[str], posterior: NDArray[Any], prior: NDArray[Any] | None) -> str:
    """Draw the median, half and nine tenths of the draws of each adapter, one panel for each kind of module.

    Args:
        modules: The names of the adapted modules.
        posterior: The draws of the norms, `(draw, adapter)`.
        prior: The same under the prior, or nothing.
    """
    names = short_names(modules)
    kinds = list(dict.fromkeys(kind for kind, _ in names))
    members = {kind: [i for i, name in enumerate(names) if name[0] == kind] for kind in kinds}
    columns = min(len(kinds), 3)
    rows = -(-len(kinds) // columns)
    tallest = max(map(len, members.values()))

    def plot(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for axes in grid.flat[len(kinds) :]:
            axes.set_visible(False)
        for axes, kind in zip(grid.flat, kinds, strict=False):
            labels = [names[i][1] for i in members[kind]]
            _rows(
                axes, labels, posterior[:, members[kind]], None if prior is None else prior[:, members[kind]]
            )
            axes.set_title(kind)
        if _spread(posterior, prior) > 30:
            grid.flat[0].set_xscale("log")
            grid.flat[0].xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            grid.flat[0].xaxis.set_minor_formatter(NullFormatter())
        for axes in grid[-1]:
            axes.set_xlabel("‖BA‖")

    label = f"Forest plot of the norm of the update of {len(modules)} adapters under posterior and prior."
    return draw_svg("forest", label, 780, rows * (55 + 15 * tallest) + 25, plot)


def short_names(modules: Sequence[str]) -> list[tuple[str, str]]:
    """Split module names into their kind and what tells them apart.

    >>> short_names(["bert.layer.0.attention.query", "bert.layer.1.attention.query"])
    [('query', 'layer 0'), ('query', 'layer 1')]
    """
    names = []
    for module in modules:
        number = re.search(r"(?:^|\.)(\w+)\.(\d+)\.", module)
        kind = module.rpartition(".")[2]
        names.append((kind, f"{number[1].removesuffix('s')} {number[2]}" if number else module))
    # Names that collide say all they have.
    return names if len(set(names)) == len(names) else [("adapter", module) for module in modules]


def _rows(axes: Axes, labels: Sequence[str], posterior: NDArray[Any], prior: NDArray[Any] | None) -> None:
    places = np.arange(len(labels))
    if prior is not None:
        low, high = np.quantile(prior, (0.05, 0.95), axis=0)
        axes.hlines(places, low, high, color=COLOURS["line"], linewidth=8)
    low, lower, middle, upper, high = np.quantile(posterior, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)
    axes.hlines(places, low, high, color=COLOURS["blue"], linewidth=1.2)
    axes.hlines(places, lower, upper, color=COLOURS["blue"], linewidth=3.6)
    axes.plot(middle, places, "o", color=COLOURS["blue"], markersize=5.5, markeredgecolor=COLOURS["paper"])
    axes.set_yticks(places, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


def _spread(posterior: NDArray[Any], prior: NDArray[Any] | None) -> float:
    values = posterior if prior is None else np.concatenate([posterior, prior])
    low, high = np.quantile(values, (0.02, 0.98))
    return float(high / low) if low > 0 else 1.0
