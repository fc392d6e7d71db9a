"""The figures of a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bayeslora_pyro.bench.cells import NUM_DRAWS
from bayeslora_pyro.bench.data import TEST
from bayeslora_pyro.bench.lines import HEADLINE_DRAWS, Group, Line, headlines, lines_of
from bayeslora_pyro.bench.scoring import PLAIN, SCALED, variants
from bayeslora_pyro.bench.tiers import BASE, MAIN
from bayeslora_pyro.metrics import mean_log_probs, reliability_bins

__all__ = ["draw_figures"]

STYLES = {
    BASE: ("#888888", "x"),
    "lora": ("#222222", "o"),
    "map": ("#7f7f7f", "s"),
    "ensemble": ("#8c564b", "D"),
    "checkpoint-ensemble": ("#c49c94", "d"),
    "mc-dropout": ("#b8a800", "v"),
    "tfb": ("#cc79a7", "p"),
    "laplace-lora": ("#009e73", "^"),
    "laplace-lora-last-layer": ("#8fd1a0", "<"),
    "blob": ("#e69f00", "P"),
    "balora": ("#d55e00", "X"),
    "rank-space": ("#7f3fbf", "h"),
    "bayesian-lora": ("#0047ab", "*"),
    "bayesian-lora-mf": ("#56b4e9", ">"),
    "bayesian-lora-mn": ("#5c7cfa", "8"),
    "bayesian-lora-spline": ("#17becf", "H"),
}
"""The colour and the marker of each method; one that is not here is grey."""

MOST_LINES = 9
NUM_BINS = 10

Draw = Callable[[Group, int], Figure | None]


def draw_figures(groups: Sequence[Group], folder: Path, num_draws: int = HEADLINE_DRAWS) -> list[Path]:
    """Draws all figures that there are cells for, as PNG files, and returns their paths.

    Args:
        groups: The cells.
        folder: Where the files go.
        num_draws: The number of draws of all methods that draw.
    """
    paths = []
    kinds: dict[str, Draw] = {
        "reliability": _reliability,
        "accuracy-ece": _accuracy_ece,
        "draws": _draws,
        "shift": _shift,
    }
    for group in groups:
        for name, draw in kinds.items():
            figure = draw(group, num_draws)
            if figure is not None:
                paths.append(_save(figure, folder / f"{name}_{group.name}.png"))
    for key in dict.fromkeys((group.task, group.model) for group in groups):
        own = [group for group in groups if (group.task, group.model) == key]
        if len(own) > 1:
            place = own[0].name.rpartition("_")[0]
            paths.append(_save(_by_size(own, num_draws), folder / f"size_{place}.png"))
    return paths


def _reliability(group: Group, num_draws: int) -> Figure | None:
    """Accuracy against confidence on the test set, the items of all seeds together; more ink for more items."""
    lines = [
        line
        for line in _few(list(headlines(lines_of(group, TEST), num_draws)))
        if line.variant == PLAIN or (line.variant == SCALED and line.method == "lora")
    ]
    columns = min(4, len(lines))
    height = -(-len(lines) // columns)
    figure = Figure(figsize=(2.3 * columns + 0.4, 2.4 * height + 0.5), layout="constrained")
    grid: Any = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(lines) :]:
        axes.set_visible(False)
    for axes, line in zip(grid.flat, lines, strict=False):
        log_probs, labels = _pooled(group, line)
        bins = reliability_bins(log_probs, labels, NUM_BINS)
        share = bins.num_items / bins.num_items.sum()
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle="--")
        for index in range(NUM_BINS):
            if bins.num_items[index]:
                axes.bar(
                    (index + 0.5) / NUM_BINS,
                    float(bins.accuracy[index]),
                    width=0.9 / NUM_BINS,
                    color=_color(line.method),
                    alpha=0.25 + 0.75 * float((share[index] / share.max()).sqrt()),
                )
        mean = line.mean("ece")
        axes.set_title(f"{line.label}{line.mark}\nECE {mean:.3f}", fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    figure.suptitle(_title(group, "reliability on the test set"), fontsize=10)
    return figure


def _accuracy_ece(group: Group, num_draws: int) -> Figure | None:
    """Each method as a point, open with a temperature, with bars of one standard deviation over seeds."""
    lines = [line for line in headlines(lines_of(group, TEST), num_draws) if line.variant in (PLAIN, SCALED)]
    figure, axes = _figure(
        group, "accuracy against calibration, test set (open: with a temperature)", width=8.2
    )
    for line in lines:
        is_scaled = line.variant == SCALED
        axes.errorbar(
            line.mean("ece") or 0.0,
            line.mean("accuracy") or 0.0,
            xerr=line.deviation("ece"),
            yerr=line.deviation("accuracy"),
            color=_color(line.method),
            marker=_marker(line.method),
            markersize=7,
            markerfacecolor="white" if is_scaled else _color(line.method),
            linestyle="none",
            linewidth=0.8,
            alpha=0.9,
            label=None if is_scaled else line.label + line.mark,
        )
    axes.set_xlabel("ECE (15 bins; less is better)")
    axes.set_ylabel("accuracy")
    _legend(axes)
    return figure


def _draws(group: Group, num_draws: int) -> Figure | None:
    """The NLL of the sampling methods by the number of draws."""
    lines = [line for line in lines_of(group, TEST) if line.variant == PLAIN]
    sampled = [line for line in lines if line.draws == NUM_DRAWS[-1] and line.members == 1]
    if not sampled:
        return None
    figure, axes = _figure(group, "NLL by the number of draws, test set")
    for end in _few(sampled):
        own = sorted((line for line in lines if line.method == end.method), key=lambda line: line.draws)
        _curve(axes, [line.draws for line in own], own, "nll", end.method)
    axes.set_xticks(NUM_DRAWS)
    axes.set_xlabel("draws")
    axes.set_ylabel("NLL")
    _legend(axes)
    return figure


def _shift(group: Group, num_draws: int) -> Figure | None:
    """NLL and ECE on the test set and on each shift."""
    names = group.sets
    if len(names) < 2:
        return None
    by_set = {name: list(headlines(lines_of(group, name), num_draws)) for name in names}
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    panels: Any = figure.subplots(1, 2)
    shown = [line for line in _few(by_set[TEST]) if line.variant == PLAIN or line.method == "lora"]
    for axes, metric in zip(panels, ("nll", "ece"), strict=True):
        for line in shown:
            own = [_same(by_set[name], line) for name in names]
            _curve(axes, list(range(len(names))), own, metric, line.method, line)
        axes.set_xticks(range(len(names)), [_short_set(group, name) for name in names], fontsize=8)
        axes.set_ylabel(metric.upper())
        axes.grid(alpha=0.25)
    _legend(panels[1])
    figure.suptitle(_title(group, "from the test set to the shifts"), fontsize=10)
    return figure


def _by_size(groups: Sequence[Group], num_draws: int) -> Figure:
    """The NLL on the test set by the number of training items."""
    figure, axes = _figure(groups[0], "NLL by training size, test set")
    by_group = [list(headlines(lines_of(group, TEST), num_draws)) for group in groups]
    keys = dict.fromkeys(
        (line.method, line.variant)
        for lines in by_group[1:]
        for line in lines
        if line.variant in (PLAIN, SCALED)
    )
    few = [key for key in keys if key[1] == PLAIN or key[0] == "lora"]
    for method, variant in few[: MOST_LINES + 1]:
        found = [
            (place, line)
            for place, lines in enumerate(by_group)
            for line in lines
            if (line.method, line.variant) == (method, variant)
        ]
        _curve(axes, [place for place, _ in found], [line for _, line in found], "nll", method, found[0][1])
    axes.set_xticks(range(len(groups)), [_size(group) for group in groups])
    axes.set_xlabel("training items")
    axes.set_ylabel("NLL")
    axes.set_title(f"{groups[0].task}: NLL by training size, test set", fontsize=10)
    _legend(axes)
    return figure


def _curve(
    axes: Axes, places: list[int], lines: Sequence[Line], metric: str, method: str, named: Line | None = None
) -> None:
    line = named or lines[0]
    axes.errorbar(
        places,
        [each.mean(metric) or 0.0 for each in lines],
        yerr=[each.deviation(metric) or 0.0 for each in lines],
        color=_color(method),
        marker=_marker(method),
        markersize=4.5,
        linewidth=1.3,
        capsize=2,
        elinewidth=0.7,
        linestyle=":" if line.variant == SCALED else "-",
        label=method if named is None else named.label + named.mark,
    )


def _few(lines: list[Line]) -> list[Line]:
    """The main methods, where all would be too many."""
    methods = dict.fromkeys(line.method for line in lines)
    return lines if len(methods) <= MOST_LINES else [line for line in lines if line.method in (BASE, *MAIN)]


def _same(lines: Sequence[Line], wanted: Line) -> Line:
    return next(line for line in lines if line.label == wanted.label)


def _pooled(group: Group, line: Line) -> tuple[torch.Tensor, torch.Tensor]:
    """The averaged log-probabilities and the labels of all seeds."""
    parts = []
    for stored in group.cells:
        if stored.cell.method != line.method:
            continue
        raw = stored.raw()
        found = variants(
            raw,
            members=line.members,
            many_draws=stored.record["method"]["num_draws"],
            blob_compat=group.blob_compat,
        )
        own = next(each for each in found if (each.name, each.num_draws) == (line.variant, line.draws))
        parts.append((mean_log_probs(own.log_probs[TEST]), raw[TEST].labels))
    log_probs, labels = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(labels)


def _figure(group: Group, about: str, width: float = 7.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(_title(group, about), fontsize=10)
    axes.grid(alpha=0.25)
    return figure, axes


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _title(group: Group, about: str) -> str:
    return f"{group.task}, {_size(group)} training items: {about}" + (
        " (blob_compat)" if group.blob_compat else ""
    )


def _size(group: Group) -> str:
    return "all" if group.size == "all" else f"{group.size:,}"


def _short_set(group: Group, name: str) -> str:
    return "test" if name == TEST else name.removeprefix(f"{group.task}/").replace("_", "\n")


def _color(method: str) -> str:
    return STYLES.get(method, ("#aaaaaa", "."))[0]


def _marker(method: str) -> str:
    return STYLES.get(method, ("#aaaaaa", "."))[1]


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=130, metadata={"Software": ""})
    return path
