"""Commonsense and science multiple choice with an official test part, from a local folder or the hub."""

from __future__ import annotations

__all__ = ["COMMONSENSE", "HubSet", "read_commonsense"]

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from .examples import Examples, Part
from .files import to_choices
from .records import Record, read_records

Row: TypeAlias = Mapping[str, Any]


def _keyed(question: str) -> Callable[[Row], dict[str, Any]]:
    """Return a reader of rows with lettered choices and an answer key."""

    def read(row: Row) -> dict[str, Any]:
        choices = row["choices"]
        label = list(choices["label"]).index(row["answerKey"])
        return {"question": row[question], "choices": list(choices["text"]), "label": label}

    return read


def _yes_no(row: Row) -> dict[str, Any]:
    return {"question": f"{row['question']}?", "choices": ["no", "yes"], "label": int(row["answer"])}


def _indexed(row: Row) -> dict[str, Any]:
    return {"question": row["question"], "choices": list(row["choices"]), "label": int(row["answer"])}


@dataclass(frozen=True)
class HubSet:
    """Where a set lies on the hub and how its rows are read.

    Args:
        path: The repository.
        config: The configuration in it.
        parts: The hub's name of each part.
        read: From a row to ``question``, ``choices`` and ``label``.
    """

    path: str
    config: str
    parts: Mapping[Part, str]
    read: Callable[[Row], dict[str, Any]]


_BOTH: dict[Part, str] = {"train": "train", "test": "test"}

COMMONSENSE: dict[str, HubSet] = {
    "arc_easy": HubSet("allenai/ai2_arc", "ARC-Easy", _BOTH, _keyed("question")),
    "arc_challenge": HubSet("allenai/ai2_arc", "ARC-Challenge", _BOTH, _keyed("question")),
    "openbookqa": HubSet("allenai/openbookqa", "main", _BOTH, _keyed("question_stem")),
    "boolq": HubSet("google/boolq", "default", {"train": "train", "test": "validation"}, _yes_no),
    "mmlu_chemistry": HubSet("cais/mmlu", "college_chemistry", {"test": "test"}, _indexed),
    "mmlu_physics": HubSet("cais/mmlu", "college_physics", {"test": "test"}, _indexed),
}
"""The sets by name."""


def read_commonsense(name: str, data_dir: Path | None) -> Examples:
    """Read a set of :data:`COMMONSENSE`.

    Args:
        name: The name of the set.
        data_dir: A folder with ``<name>.<part>.jsonl.gz`` files, or the parent of such a folder called
            ``commonsense``; None for the hub.

    Returns:
        Examples of kind ``"choice"`` that know their official part.

    Raises:
        FileNotFoundError: If the folder lacks a file.
        ImportError: If the hub is meant and ``datasets`` is not installed.
        OSError: If the hub cannot be reached.
    """
    parts: list[Part] = list(COMMONSENSE[name].parts)
    read = _from_hub if data_dir is None else _from_folder
    sets = [read(name, part, data_dir) for part in parts]
    return replace(
        sets[0],
        texts=tuple(text for some in sets for text in some.texts),
        labels=tuple(label for some in sets for label in some.labels),
        choices=tuple(choices for some in sets for choices in some.choices),
        parts=tuple(part for part, some in zip(parts, sets, strict=True) for _ in some.texts),
    )


def _from_folder(name: str, part: Part, data_dir: Path | None) -> Examples:
    file = f"{name}.{part}.jsonl.gz"
    folders = [] if data_dir is None else [data_dir, data_dir / "commonsense"]
    paths = [folder / file for folder in folders if (folder / file).is_file()]
    if not paths:
        raise FileNotFoundError(
            f"there is no {file} in data_dir={str(data_dir)!r}: give the folder that holds it"
        )
    return to_choices(name, read_records(paths[0]), source=file)


def _from_hub(name: str, part: Part, data_dir: Path | None) -> Examples:
    hub = COMMONSENSE[name]
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ImportError(
            f"{name!r} comes from the hub, which needs the package datasets: pip install datasets, "
            f"or give data_dir, a folder with {name}.{part}.jsonl.gz"
        ) from error
    try:
        rows: Iterable[Row] = datasets.load_dataset(hub.path, hub.config, split=hub.parts[part])
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot get {hub.path} ({hub.config}, {hub.parts[part]}) from the hub: {error}\n"
            f"Check the network, or give data_dir, a folder with {name}.{part}.jsonl.gz"
        ) from error
    place = f"{hub.path}, {hub.parts[part]} row"
    records = [Record(f"{place} {number}", hub.read(row)) for number, row in enumerate(rows)]
    return to_choices(name, records, source=f"{hub.path} ({hub.config})")
