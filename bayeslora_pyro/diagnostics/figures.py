"""The figures of a report: what they show is in their captions, how they look is in ``svg``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_pyro.diagnostics.svg import COLOURS, SERIES, draw_svg
from bayeslora_pyro.metrics import ReliabilityBins

__all__ = ["histogram_figure", "reliability_figure", "risk_coverage_figure", "training_figure"]

Array: TypeAlias = NDArray[Any]


def reliability_figure(sets: Mapping[str, ReliabilityBins]) -> str:
    """Draw accuracy against confidence for each set, above the share of items in each bin of the first."""

    def plot(figure: Figure) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        top.plot([0, 1], [0, 1], color=COLOURS["muted"], linewidth=1, linestyle=(0, (4, 3)))
        for i, (name, bins) in enumerate(sets.items()):
            _reliability_line(top, name, bins, COLOURS[SERIES[i % len(SERIES)]], first=i == 0)
        top.set(ylabel="accuracy", xlim=(lowest, 1.0), ylim=(bottom_of_answers, 1.02))
        first = next(iter(sets.values()))
        share = first.num_items.numpy() / first.num_items.sum().item()
        edges = np.linspace(0, 1, len(share) + 1)
        bottom.bar(edges[:-1], share, np.diff(edges) * 0.92, align="edge", color=COLOURS["blue"], alpha=0.55)
        bottom.set(xlabel="confidence", ylabel="items")
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        for axis in (top.xaxis, top.yaxis, bottom.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(sets) > 1:
            top.legend(loc="upper left")

    occupied = min(int((bins.num_items > 0).nonzero()[0]) / len(bins.num_items) for bins in sets.values())
    lowest = max(0.0, occupied - 0.02)
    worst = min(float(bins.accuracy.nan_to_num(1.0).min()) for bins in sets.values())
    bottom_of_answers = max(0.0, min(worst, lowest) - 0.15) - 0.02
    label = (
        f"Reliability diagram of {', '.join(sets)}: accuracy against confidence; the diagonal is calibrated."
    )
    return draw_svg("reliability", label, 380, 400, plot)


def _reliability_line(axes: Axes, name: str, bins: ReliabilityBins, colour: str, first: bool) -> None:
    keep = (bins.num_items > 0).numpy()
    confidence, accuracy = bins.confidence.numpy()[keep], bins.accuracy.numpy()[keep]
    count = bins.num_items.numpy()[keep]
    if first:
        axes.vlines(confidence, *_wilson(accuracy, count), color=colour, linewidth=1.2, alpha=0.6)
        axes.vlines(confidence, accuracy, confidence, color=colour, linewidth=7, alpha=0.16)
    axes.plot(confidence, accuracy, color=colour, linewidth=1.6 if first else 1.2, label=name)
    axes.scatter(confidence, accuracy, 12 + 130 * count / count.sum(), color=colour, zorder=3)


def _wilson(share: Array, count: Array) -> tuple[Array, Array]:
    """Return the ends of Wilson's 95 % interval of a share."""
    z = 1.96
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def risk_coverage_figure(curves: Mapping[str, tuple[Tensor, Tensor]]) -> str:
    """Draw the error rate among the most confident items against the share of items answered."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, (coverage, risk)) in enumerate(curves.items()):
            colour = COLOURS[SERIES[i % len(SERIES)]]
            # The first few items make the curve jump without telling anything.
            shown = slice(min(max(9, len(risk) // 25), len(risk) - 1), None)
            axes.plot(coverage[shown], risk[shown], color=colour, label=name)
            axes.plot(coverage[-1:], risk[-1:], "o", color=colour, markersize=5)
            axes.axhline(float(risk[-1]), color=colour, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
        axes.set(xlabel="share of items answered, most confident first", ylabel="error rate among them")
        axes.set(xlim=(0, 1.02), ylim=(0, None))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(curves) > 1:
            axes.legend(loc="lower right")

    label = f"Risk-coverage curve of {', '.join(curves)}; it falls to the left where confidence finds errors."
    return draw_svg("risk", label, 380, 400, plot)


def histogram_figure(name: str, quantity: str, groups: Mapping[str, Array], unit: str = "nats") -> str:
    """Draw how a quantity is distributed in each group, as shares of the group."""

    def plot(figure: Figure) -> None:
        axes = figure.subplots()
        top = max((float(values.max()) for values in groups.values() if len(values)), default=1.0)
        edges = np.linspace(0, max(top, 1e-3), 31)
        for i, (group, values) in enumerate(groups.items()):
            share = np.histogram(values, edges)[0] / max(len(values), 1)
            colour = COLOURS[SERIES[i % len(SERIES)]]
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.18)
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=f"{group} ({len(values):,})")
        axes.set(xlabel=f"{quantity}, {unit}", ylabel="share of the group", xlim=(0, edges[-1]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        # Room for the legend above the bars.
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
        axes.legend(loc="upper right")

    return draw_svg(name, f"Histogram of the {quantity} of {', '.join(groups)}.", 380, 270, plot)


def training_figure(steps: Array, parts: Mapping[str, tuple[str, Array]]) -> str:
    """Draw each part of the ELBO over the steps of the fit, one panel a part and one line a chain.

    Args:
        steps: The steps, `(step,)`.
        parts: For each title, how to read it (``"linear"`` or ``"log"``) and the values `(chain, step)`.
    """
    rows = -(-len(parts) // 3)

    def plot(figure: Figure) -> None:
        grid = figure.subplots(rows, min(3, len(parts)), squeeze=False, sharex=True)
        for axes in grid.flat[len(parts) :]:
            axes.set_visible(False)
        for axes, (title, (scale, values)) in zip(grid.flat, parts.items(), strict=False):
            axes.set(title=title, yscale=scale, xlim=(steps[0], steps[-1]) if len(steps) > 1 else None)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            if scale == "log":
                axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axes.yaxis.set_minor_formatter(NullFormatter())
            if scale == "linear":
                _leave_out_start(axes, values)
            for i, chain in enumerate(values):
                _training_line(axes, steps, chain, COLOURS[SERIES[i % len(SERIES)]])
        for axes in grid[-1]:
            axes.set_xlabel("step")

    return draw_svg("training", f"Curves over the fit: {', '.join(parts)}.", 780, 40 + 175 * rows, plot)


def _training_line(axes: Axes, steps: Array, values: Array, colour: str) -> None:
    keep = np.isfinite(values)
    steps, values = _thin(steps[keep]), _thin(values[keep])
    smooth = _smooth(values, max(1, len(values) // 40))
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
    axes.plot(steps, smooth, color=colour)


def _leave_out_start(axes: Axes, values: Array) -> None:
    """Let the first tenth of a fit leave the panel where it would dwarf the rest."""
    late = values[:, values.shape[1] // 10 :]
    low, high = float(np.nanmin(late)), float(np.nanmax(late))
    if np.nanmax(values) - np.nanmin(values) > 4 * (high - low) > 0:
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))


def _thin(values: Array, limit: int = 600) -> Array:
    """Average neighbours until a curve has few enough points for a page."""
    block = -(-len(values) // limit) or 1
    whole = len(values) // block * block
    return np.asarray(values[:whole].reshape(-1, block).mean(1))


def _smooth(values: Array, radius: int) -> Array:
    windows: Sequence[Array] = [values[max(0, i - radius) : i + radius + 1] for i in range(len(values))]
    return np.array([window.mean() for window in windows])
