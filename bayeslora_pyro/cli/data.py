"""The items of a run: read, split, and checked against what a fit has seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bayeslora_pyro.cli.errors import CommandError, blame, one_line
from bayeslora_pyro.cli.plans import SUFFIXES, short_name
from bayeslora_pyro.tasks import TASKS, Examples, Splits, load_file, load_task, split

__all__ = ["RunData", "TargetScale", "is_file_name", "load_run_data", "load_shift", "set_name"]

_SIZES = ("train", "tuning", "test")


@dataclass(frozen=True)
class TargetScale:
    """The mean and the standard deviation of the training targets, in whose units a regression is fitted."""

    mean: float
    deviation: float

    def apply(self, examples: Examples) -> Examples:
        """Standardises the targets."""
        targets = tuple((target - self.mean) / self.deviation for target in examples.targets)
        return replace(examples, targets=targets, deviations=())


@dataclass(frozen=True)
class RunData:
    """The data of a run.

    Args:
        name: What the set is called.
        examples: All items.
        splits: The training, the tuning and the test items; targets are standardised.
        scale: How targets are standardised; None where there are none.
    """

    name: str
    examples: Examples
    splits: Splits
    scale: TargetScale | None

    def record(self) -> dict[str, Any]:
        """What `run.json` says of the data."""
        sizes = {name: len(getattr(self.splits, name)) for name in _SIZES}
        return {
            "name": self.name,
            "kind": self.examples.kind,
            "classes": list(self.examples.classes),
            "items": len(self.examples),
            "sha256": _digest(self.examples),
            "source": self.examples.source,
            "target": None if self.scale is None else vars(self.scale),
            **sizes,
        }


def load_run_data(options: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> RunData:
    """Reads and splits the data of a run.

    Args:
        options: The options of `fit`.
        known: What `run.json` says of the data, which must still be so.
    """
    examples = _load(options)
    if known is not None and _digest(examples) != known["sha256"]:
        raise CommandError(
            f"{_argument(options)}: the data are not those of the fit any more, so its test set may hold training "
            "items: restore them, or fit again"
        )
    splits = _split(examples, options, known)
    scale = _scale_of(splits.train, options) if examples.kind == "regression" else None
    if scale is not None:
        splits = Splits(*(scale.apply(getattr(splits, name)) for name in _SIZES))
    return RunData(set_name(options["task"] or options["data"]), examples, splits, scale)


def load_shift(name: str, options: Mapping[str, Any], known: Mapping[str, Any], argument: str) -> Examples:
    """Reads a task or a file that is like the data of a run.

    Args:
        name: The name of the task, or the file.
        options: The options of `fit`.
        known: What `run.json` says of the data of the run.
        argument: The argument that names it, for messages.
    """
    classes = tuple(known["classes"])
    if is_file_name(name):
        with blame(argument, None if Path(name).is_file() else name):
            columns = {key: options[key] for key in ("text_column", "label_column", "target_column")}
            examples = load_file(name, **columns, classes=classes or None)
    else:
        with blame(argument):
            examples = load_task(name, data_dir=options["data_dir"])
    if examples.kind != known["kind"]:
        raise CommandError(
            f"{argument} {name} is for {examples.kind}, and the run in question for {known['kind']}: choose another"
        )
    if examples.classes != classes:
        raise CommandError(
            f"{argument} {name} has the classes {', '.join(examples.classes)}, and the run {', '.join(classes)}: "
            "choose another"
        )
    if _digest(examples) == known["sha256"]:
        raise CommandError(
            f"{argument} {name} is what the posterior was fitted to: leave it out to score its test set"
        )
    if known["target"] is not None:
        examples = TargetScale(**known["target"]).apply(examples)
    return examples


def set_name(name: str) -> str:
    """What a set is called: a task by its name, a file by its own without folder and suffixes."""
    return short_name(name) if is_file_name(name) else name


def is_file_name(name: str) -> bool:
    """Whether a name means a file and not a task."""
    return name.lower().endswith(SUFFIXES) or (name not in TASKS and Path(name).is_file())


def _argument(options: Mapping[str, Any]) -> str:
    return f"--task {options['task']}" if options["task"] else f"--data {options['data']}"


def _load(options: Mapping[str, Any]) -> Examples:
    if options["task"] is not None:
        with blame("--task"):
            return load_task(options["task"], data_dir=options["data_dir"])
    columns = {name: options[name] for name in ("text_column", "label_column", "target_column")}
    try:
        return load_file(options["data"], **columns)
    except (ValueError, OSError) as error:
        message = one_line(error)
        for name, column in columns.items():
            if f"has no column {column!r}" in message:
                raise CommandError(f"--{name.replace('_', '-')} {column}: {message}") from error
        cure = "; name it with --text-column" if "has no column 'text'" in message else ""
        raise CommandError(f"--data: {message}{cure}") from error


def _split(examples: Examples, options: Mapping[str, Any], known: Mapping[str, Any] | None) -> Splits:
    sizes = (
        {name: options[name] for name in _SIZES} if known is None else {name: known[name] for name in _SIZES}
    )
    official = sum(part == "test" for part in examples.parts)
    if sizes["test"] is None:
        sizes["test"] = min(1000, official or max(1, len(examples) // 5))
    if sizes["tuning"] is None:
        sizes["tuning"] = min(400, (len(examples) - (official or sizes["test"])) // 10)
    try:
        splits = split(examples, **sizes, seed=options["seed"])
    except ValueError as error:
        message = one_line(error)
        name = message.partition("=")[0]
        raise CommandError(f"--{name} {sizes.get(name, '')}: {message}") from error
    if len(splits.train) == 0:
        raise CommandError(
            f"{_argument(options)} has {len(examples)} items, which leaves none for training: give more, or lower "
            "--test and --tuning"
        )
    return splits


def _scale_of(train: Examples, options: Mapping[str, Any]) -> TargetScale:
    targets = torch.tensor(train.targets, dtype=torch.float64)
    deviation = float(targets.std(correction=0))
    if not deviation > 0:
        raise CommandError(
            f"{_argument(options)}: all {len(train)} training targets are {train.targets[0]:g}: there is nothing to "
            "learn, so choose another column"
        )
    return TargetScale(float(targets.mean()), deviation)


def _digest(examples: Examples) -> str:
    parts: list[Any] = [examples.texts, examples.labels, examples.targets, examples.choices, examples.classes]
    parts += [examples.completions] if examples.completions else []  # the rest stays as it was without them
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
