"""The tables of a report, whatever they are written as."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bayeslora_pyro.bench.cells import short_name
from bayeslora_pyro.bench.data import TEST
from bayeslora_pyro.bench.lines import HEADLINE_DRAWS, LOWER, Group, Line, headlines, lines_of
from bayeslora_pyro.bench.paired import differences

__all__ = ["Table", "Text", "cost_table", "difference_table", "main_table", "mean_table", "published_table"]

HEADS = {
    "accuracy": "acc.",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "aurc": "AURC",
    "auroc_entropy": "AUROC H",
    "auroc_information": "AUROC MI",
}

SUMMED = ("accuracy", "nll", "ece", "brier", "aurc")
"""The figures that are averaged over tasks."""

NOTE = (
    "Mean ± standard deviation over seeds; in bold the best single model without further labels. † with a temperature "
    "fitted to the tuning labels, which the others do not see. ‡ several members: fits, or points of one."
)
COMPAT = "With the quirks of the published evaluation (blob_compat): not to be compared with other tables."


@dataclass(frozen=True)
class Text:
    """What stands in one place of a table."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        title: What it is about.
        note: What one should know to read it.
        columns: The heads.
        rows: The rows.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]


def main_table(group: Group, name: str, num_draws: int = HEADLINE_DRAWS) -> Table:
    """The figures of all methods on a set.

    Args:
        group: The cells.
        name: The set.
        num_draws: The number of draws of all methods that draw.
    """
    lines = list(headlines(lines_of(group, name), num_draws))
    shown = [metric for metric in HEADS if any(line.values(metric) for line in lines)]
    best = {metric: _best(lines, metric) for metric in shown}
    rows = [
        (
            Text(line.label + line.mark),
            Text(str(len(line.rows))),
            *(Text(_with_deviation(line, metric), _is_best(line, metric, best[metric])) for metric in shown),
        )
        for line in lines
    ]
    note = f"{_describe(group, name)} Sampling methods with {num_draws} draws. {NOTE}"
    return Table(
        f"{_title(group)}, {_set_title(group, name)}",
        f"{note} {COMPAT}" if group.blob_compat else note,
        ("method", "seeds", *(HEADS[metric] for metric in shown)),
        tuple(rows),
    )


def mean_table(groups: Sequence[Group], num_draws: int = HEADLINE_DRAWS) -> Table | None:
    """The figures of the test sets, averaged over tasks, of the methods that all of them have; None for one task.

    Args:
        groups: The cells of each task, with one size of the training set.
        num_draws: The number of draws of all methods that draw.
    """
    if len(groups) < 2:
        return None
    by_task = [{line.label: line for line in headlines(lines_of(group, TEST), num_draws)} for group in groups]
    labels = [label for label in by_task[0] if all(label in lines for lines in by_task)]
    means = {
        label: {metric: _mean(metric, [lines[label] for lines in by_task]) for metric in SUMMED}
        for label in labels
    }
    plain = [means[label] for label in labels if not by_task[0][label].mark]
    best = {
        metric: (min if metric in LOWER else max)((row[metric] for row in plain), default=None)
        for metric in SUMMED
    }
    rows = tuple(
        (
            Text(label + by_task[0][label].mark),
            *(
                Text(
                    _short(means[label][metric]),
                    not by_task[0][label].mark and _alike(means[label][metric], best[metric]),
                )
                for metric in SUMMED
            ),
        )
        for label in labels
    )
    tasks = ", ".join(f"{group.task} on {short_name(group.model)}" for group in groups)
    note = f"The mean over {tasks} of the means over seeds, for methods that all of them have. {NOTE}"
    size = "all" if groups[0].size == "all" else f"{groups[0].size:,}"
    compat = " (blob_compat)" if any(group.blob_compat for group in groups) else ""
    heads = ("method", *(HEADS[metric] for metric in SUMMED))
    return Table(f"Mean over tasks, {size} training items, test sets{compat}", note, heads, rows)


def cost_table(group: Group) -> Table:
    """What the methods of a group cost beside plain LoRA."""
    lines = [line for line in headlines(lines_of(group, TEST)) if line.variant == ""]
    columns: dict[str, Callable[[Line], str]] = {
        "trainable": lambda line: _whole(line.cost("parameters", "total")),
        "beside LoRA": lambda line: _whole(line.cost("parameters", "extra"), sign=True),
        "step ×": lambda line: _ratio(line.cost("step", "ratio")),
        "draws": lambda line: _whole(line.cost("inference", "draws")),
        "prediction ×": lambda line: _ratio(line.cost("inference", "ratio")),
        "ms an item": lambda line: _ratio(line.cost("inference", "ours_ms_per_item")),
        "fit s": lambda line: _whole(line.cost("fit_seconds")),
        "after it s": lambda line: _whole(line.cost("finish_seconds")),
        "memory MB": lambda line: _whole(line.cost("peak_memory_mb")),
    }
    rows = tuple(
        (Text(line.label + line.mark), *(Text(column(line)) for column in columns.values())) for line in lines
    )
    note = (
        "Medians over seeds. Trainable parameters with the head; a step (of all members) over a step of plain PEFT "
        "LoRA, and the prediction of a batch with so many draws over one plain pass, side by side in one process; the "
        "peak of memory of the whole process. A fit that another cell had done, or that was resumed, has no time."
    )
    return Table(f"{_title(group)}: costs", note, ("method", *columns), rows)


def difference_table(group: Group, name: str, num_draws: int = HEADLINE_DRAWS) -> Table | None:
    """How each method differs from LoRA on the same items; None where there is no LoRA to compare with."""
    found = differences(group, name, num_draws)
    if not found:
        return None
    rows = tuple(
        (
            Text(difference.label),
            Text(str(difference.num_seeds)),
            *(
                Text(f"{middle:+.3f} [{low:+.3f}, {high:+.3f}]", not low <= 0 <= high)
                for middle, low, high in difference.intervals.values()
            ),
        )
        for difference in found
    )
    note = (
        "Mean over the seeds that both have, with the 95 % interval of a paired bootstrap over items; in bold where it "
        "leaves out zero. For all but the accuracy, less is better."
    )
    heads = tuple(f"Δ {HEADS[metric]}" for metric in found[0].intervals)
    title = f"{_title(group)}, {_set_title(group, name)}: less LoRA"
    return Table(title, note, ("method", "seeds", *heads), rows)


def published_table(rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """The figures that others have published, which were measured in another way than ours."""
    note = (
        "As printed by their authors, or quoted by others, and not measured here: other base models, items, bins and "
        "choices of a step. ECE and accuracy in per cent. Not to be compared with the tables above."
    )
    return Table(
        "Published elsewhere",
        note,
        ("base model and task", "figure", "value", "source"),
        tuple(tuple(map(Text, row)) for row in rows),
    )


def _best(lines: Sequence[Line], metric: str) -> float | None:
    """The best mean of the lines that have no more than the others."""
    means = [line.mean(metric) for line in lines if not line.mark]
    known = [mean for mean in means if mean is not None]
    if not known:
        return None
    return (min if metric in LOWER else max)(known)


def _is_best(line: Line, metric: str, best: float | None) -> bool:
    """Whether a line is the best, as far as is shown of it."""
    mean = line.mean(metric)
    return not line.mark and mean is not None and _alike(mean, best)


def _alike(value: float, best: float | None) -> bool:
    return best is not None and _short(value) == _short(best)


def _title(group: Group) -> str:
    size = "all" if group.size == "all" else f"{group.size:,}"
    return f"{group.task} on {short_name(group.model)}, {size} training items" + (
        " (blob_compat)" if group.blob_compat else ""
    )


def _mean(metric: str, lines: Sequence[Line]) -> float:
    return statistics.fmean(line.mean(metric) or 0.0 for line in lines)


def _set_title(group: Group, name: str) -> str:
    return "test set" if name == TEST else f"shift to {name.removeprefix(group.task + '/')}"


def _describe(group: Group, name: str) -> str:
    protocol, items = group.cells[0].protocol, group.cells[0].record["items"]
    return (
        f"{items[name]:,} items. {protocol.num_steps:,} steps of {protocol.batch_size}, rank {protocol.r}, base model "
        f"in {protocol.dtype or 'its own dtype'}."
    )


def _with_deviation(line: Line, metric: str) -> str:
    mean, deviation = line.mean(metric), line.deviation(metric)
    if mean is None:
        return ""
    return _short(mean) if deviation is None else f"{_short(mean)} ± {_short(deviation)}"


def _short(value: float) -> str:
    text = f"{value:.3f}"
    return text[1:] if text.startswith("0.") else text


def _whole(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else f"{round(value):+,}" if sign else f"{round(value):,}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
