"""The types of options: from the text of a flag, or a value of a configuration file, to a Python value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["ValueType", "number", "number_or", "once", "one_of", "switch", "text", "texts", "whole"]


@dataclass(frozen=True)
class ValueType:
    """The type of an option.

    Args:
        convert: Makes the Python value, or raises a ValueError that says what to give.
        metavar: How the value is called in the help.
        many: Whether a flag takes several values.
        is_switch: Whether a flag takes none.
        has_no_form: Whether such a flag has a `--no-` form too.
    """

    convert: Callable[[Any], Any]
    metavar: str
    many: bool = False
    is_switch: bool = False
    has_no_form: bool = False


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("give some text, in quotes if YAML takes it for something else")
    return str(value)


def _texts(value: Any) -> list[str]:
    values = [_text(each) for each in (value if isinstance(value, list) else [value])]
    return [part for each in values for part in each.split(",") if part]


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("give true or false")
    return value


switch = ValueType(_switch, "", is_switch=True, has_no_form=True)
once = ValueType(_switch, "", is_switch=True)


def text(metavar: str = "NAME") -> ValueType:
    """Some text."""
    return ValueType(_text, metavar)


def texts(metavar: str = "NAME") -> ValueType:
    """Several texts, as a list in a file, and one after another or between commas behind a flag."""
    return ValueType(_texts, metavar, many=True)


def whole(minimum: int | None = None) -> ValueType:
    """A whole number, perhaps of at least some size."""
    wanted = "give a whole number" + ("" if minimum is None else f" of at least {minimum}")

    def convert(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError(wanted)
        try:
            result = int(value)
        except ValueError:
            raise ValueError(wanted) from None
        if minimum is not None and result < minimum:
            raise ValueError(wanted)
        return result

    return ValueType(convert, "N")


def number(minimum: float | None = None, optional: bool = False) -> ValueType:
    """A finite number; if optional, `none` too."""
    wanted = "give a number" + ("" if minimum is None else f" of at least {minimum:g}")
    wanted += ", or none" if optional else ""

    def convert(value: Any) -> float | None:
        if optional and str(value).lower() == "none":
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(wanted)
        try:
            result = float(value)  # PyYAML reads 1e-3 as text
        except ValueError:
            raise ValueError(wanted) from None
        if not math.isfinite(result) or (minimum is not None and result < minimum):
            raise ValueError(wanted)
        return result

    return ValueType(convert, "X")


def number_or(*names: str) -> ValueType:
    """A finite number, or one of some names."""
    plain = number()

    def convert(value: Any) -> Any:
        if value in names:
            return value
        try:
            return plain.convert(value)
        except ValueError as error:
            raise ValueError(f"{error}, or one of {', '.join(names)}") from None

    return ValueType(convert, "X")


def one_of(*names: str) -> ValueType:
    """One of some names."""

    def convert(value: Any) -> str:
        if value not in names:
            raise ValueError(f"give one of {', '.join(names)}")
        return str(value)

    return ValueType(convert, "NAME")
