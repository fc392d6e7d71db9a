"""Labelled examples as a value: texts with classes, numbers or the right choice."""

from __future__ import annotations

__all__ = ["Examples", "Kind", "Part"]

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["classification", "regression", "choice", "text"]
"""What is to be predicted: the class of a text, a number, the right one of its choices, its next tokens."""

Part: TypeAlias = Literal["train", "test"]

_PER_ITEM = ("labels", "targets", "choices", "deviations", "parts", "completions")
_REQUIRED: dict[Kind, str | None] = {
    "classification": "labels",
    "regression": "targets",
    "choice": "choices",
    "text": None,
}


@dataclass(frozen=True)
class Examples:
    """A set of labelled examples; each per-item field is empty or as long as ``texts``.

    Args:
        name: What the set is called.
        kind: What is to be predicted.
        texts: The texts, or the questions.
        labels: Indices into ``classes`` (classification) or into the item's ``choices`` (choice).
        targets: Numbers to predict (regression).
        choices: The choices of each question (choice).
        classes: The names of the classes (classification).
        deviations: The standard deviation of each target where it is known, else NaN (regression).
        parts: The part of its official split that each item belongs to, where there is one.
        completions: What comes after each text, which alone is then predicted (text).
        source: Where the examples come from.

    Raises:
        ValueError: If lengths do not fit, or a label is out of range.
    """

    name: str
    kind: Kind
    texts: tuple[str, ...]
    labels: tuple[int, ...] = ()
    targets: tuple[float, ...] = ()
    choices: tuple[tuple[str, ...], ...] = ()
    classes: tuple[str, ...] = ()
    deviations: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()
    completions: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        required = _REQUIRED[self.kind]
        for field in _PER_ITEM:
            length = len(getattr(self, field))
            if length != len(self) and (length or field == required):
                raise ValueError(
                    f"{field} has {length} items and texts has {len(self)}: give one for each text"
                )
        if self.kind in ("classification", "choice"):
            self._check_labels()

    def _check_labels(self) -> None:
        if len(self.labels) != len(self):
            raise ValueError(
                f"labels has {len(self.labels)} items and texts has {len(self)}: give one for each text"
            )
        for item, label in enumerate(self.labels):
            size = len(self.choices[item]) if self.kind == "choice" else len(self.classes)
            if not 0 <= label < size:
                raise ValueError(f"labels[{item}]={label} is out of range: use 0 to {size - 1}")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_outcomes(self) -> int:
        """The number of classes, or the largest number of choices; 1 for the other kinds."""
        if self.kind == "choice":
            return max(map(len, self.choices), default=0)
        return len(self.classes) if self.kind == "classification" else 1

    def key(self, item: int) -> str:
        """Return what makes an item the same as another: its text, and its choices or its completion if it has some."""
        completion = self.completions[item : item + 1]
        return "\x1f".join([self.texts[item], *(self.choices[item] if self.choices else ()), *completion])

    def select(self, items: Sequence[int]) -> Examples:
        """Return the examples with these indices, in this order."""
        picked: dict[str, Any] = {
            field: tuple(getattr(self, field)[item] for item in items)
            for field in ("texts", *_PER_ITEM)
            if getattr(self, field)
        }
        return replace(self, **picked)
