"""The user's own examples, from a ``.jsonl`` or ``.csv`` file."""

from __future__ import annotations

__all__ = ["load_file", "load_prompts", "to_choices"]

import json
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from .examples import Examples
from .records import Record, read_records


def load_file(
    path: str | PathLike[str],
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    target_column: str | None = None,
    classes: Sequence[str] | None = None,
) -> Examples:
    """Read examples from a file.

    What is read follows from the columns: with ``target_column`` a regression, with ``label_column`` a
    classification; else, from the columns ``question``, ``choices`` (a list, in CSV as JSON) and ``label``
    (an index from 0), multiple choice; else a classification if there is a column ``label``; else, from the
    columns ``prompt`` and ``completion``, texts of which the completion is predicted; else plain text.

    Args:
        path: A ``.jsonl`` or ``.csv`` file, perhaps gzipped.
        text_column: The column of the text, ``"text"`` if None.
        label_column: The column of the class, a string or an integer.
        target_column: The column of the number to predict.
        classes: The class names in order, such as the training set's ``classes``; None for the sorted labels
            of this file.

    Returns:
        The examples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or one of its lines is malformed; the message names the line.
    """
    path = Path(path)
    if label_column is not None and target_column is not None:
        raise ValueError(
            f"label_column={label_column!r} and target_column={target_column!r} were both given: "
            "give the first for classification or the second for regression"
        )
    records = read_records(path)
    columns = list(dict.fromkeys(name for record in records for name in record.values))
    if (
        label_column is None
        and target_column is None
        and text_column is None
        and {"question", "choices"} <= {*columns}
    ):
        _check_columns(path, columns, ["label"])
        return to_choices(path.name, records, source=str(path))
    if _is_of_completions(columns, text_column, label_column, target_column):
        prompts, completions = (
            tuple(_text(record, column) for record in records) for column in ("prompt", "completion")
        )
        return Examples(path.name, "text", prompts, completions=completions, source=str(path))
    text_column = text_column or "text"
    if target_column is None and label_column is None and "label" in columns:
        label_column = "label"
    _check_columns(path, columns, [c for c in (text_column, label_column, target_column) if c is not None])
    texts = tuple(_text(record, text_column) for record in records)
    if target_column is not None:
        targets = tuple(_number(record, target_column) for record in records)
        return Examples(path.name, "regression", texts, targets=targets, source=str(path))
    if label_column is None:
        return Examples(path.name, "text", texts, source=str(path))
    names = [_class_name(record, label_column) for record in records]
    known = _sorted_classes(path, label_column, names) if classes is None else tuple(classes)
    labels = tuple(_index(record, name, known) for record, name in zip(records, names, strict=True))
    return Examples(path.name, "classification", texts, labels=labels, classes=known, source=str(path))


def load_prompts(path: str | PathLike[str]) -> tuple[str, ...]:
    """Read what to begin texts with, from the column ``prompt`` of a file, or else ``text``.

    Args:
        path: A ``.jsonl`` or ``.csv`` file, perhaps gzipped.

    Returns:
        The prompts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or one of its lines is malformed; the message names the line.
    """
    path = Path(path)
    records = read_records(path)
    columns = list(dict.fromkeys(name for record in records for name in record.values))
    column = "text" if "text" in columns and "prompt" not in columns else "prompt"
    _check_columns(path, columns, [column])
    return tuple(_text(record, column) for record in records)


def _is_of_completions(columns: Sequence[str], *given: str | None) -> bool:
    """Whether a file has prompts and completions, and nothing that speaks for another kind."""
    return (
        given == (None, None, None)
        and {"prompt", "completion"} <= {*columns}
        and not {"text", "label"} & {*columns}
    )


def to_choices(name: str, records: Sequence[Record], *, source: str) -> Examples:
    """Read ``question``, ``choices`` and ``label`` of each record.

    Args:
        name: What the set is called.
        records: The records.
        source: Where they come from.

    Returns:
        Examples of kind ``"choice"``.

    Raises:
        ValueError: If a record is malformed; the message names the line.
    """
    choices = tuple(_choices(record) for record in records)
    return Examples(
        name,
        "choice",
        tuple(_text(record, "question") for record in records),
        labels=tuple(_choice_label(record, len(some)) for record, some in zip(records, choices, strict=True)),
        choices=choices,
        source=source,
    )


def _check_columns(path: Path, columns: list[str], wanted: list[str]) -> None:
    if missing := [name for name in wanted if name not in columns]:
        raise ValueError(
            f"{path} has no column {missing[0]!r}: its columns are {', '.join(map(repr, columns))}"
        )


def _value(record: Record, column: str) -> Any:
    value = record.values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{record.place}: {column!r} is missing or empty: fill it in or drop the line")
    return value


def _text(record: Record, column: str) -> str:
    value = _value(record, column)
    if not isinstance(value, str):
        raise ValueError(
            f"{record.place}: {column!r} is {value!r}, which is not text: name the column of the text"
        )
    return value


def _number(record: Record, column: str) -> float:
    value = _value(record, column)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{record.place}: {column!r} is {value!r}, which is not a finite number: correct it")
    return number


def _class_name(record: Record, column: str) -> str:
    value = _value(record, column)
    if not isinstance(value, str | int):
        raise ValueError(f"{record.place}: {column!r} is {value!r}: a class is a string or an integer")
    return str(value).strip()


def _sorted_classes(path: Path, column: str, names: list[str]) -> tuple[str, ...]:
    """Sort the classes, numerically if all are integers."""
    distinct = set(names)
    if len(distinct) < 2:
        raise ValueError(
            f"{path} has the one class {names[0]!r} in {column!r}: give two or more, or pass classes="
        )
    numeric = all(name.removeprefix("-").isdecimal() for name in distinct)
    return tuple(sorted(distinct, key=int) if numeric else sorted(distinct))


def _index(record: Record, name: str, classes: tuple[str, ...]) -> int:
    if name not in classes:
        raise ValueError(
            f"{record.place}: the class {name!r} is not one of the known classes {', '.join(classes)}"
        )
    return classes.index(name)


def _choices(record: Record) -> tuple[str, ...]:
    value = _value(record, "choices")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f'{record.place}: \'choices\' is not a JSON list: write ["one", "two"]'
            ) from error
    if (
        not isinstance(value, list)
        or len(value) < 2
        or not all(isinstance(v, str) and v.strip() for v in value)
    ):
        raise ValueError(f"{record.place}: 'choices' is {value!r}: give a list of two or more strings")
    return tuple(value)


def _choice_label(record: Record, num_choices: int) -> int:
    value = _value(record, "label")
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) >= num_choices:
        raise ValueError(
            f"{record.place}: 'label' is {value!r}: give the index of the right choice, "
            f"0 to {num_choices - 1}"
        )
    return int(text)
