"""Reading ``.jsonl`` and ``.csv`` files, plain or gzipped, into records that know their line."""

from __future__ import annotations

__all__ = ["SUFFIXES", "Record", "read_records"]

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Args:
        place: The file and the line, for messages.
        values: The values by column.
    """

    place: str
    values: dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Read a file of records.

    Args:
        path: A ``.jsonl`` or ``.csv`` file, perhaps with ``.gz`` behind.

    Returns:
        The records, at least one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read as what its name says; the message names the line.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path} has an unknown extension: use one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: check the path")
    text = _decode(path, _uncompressed(path))
    jsonl = path.name.lower().removesuffix(".gz").endswith(".jsonl")
    records = list(_read_jsonl(path, text) if jsonl else _read_csv(path, text))
    if not records:
        raise ValueError(f"{path} is empty: it needs at least one record")
    return records


def _uncompressed(path: Path) -> bytes:
    content = path.read_bytes()
    if not path.name.lower().endswith(".gz"):
        return content
    try:
        return gzip.decompress(content)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): write it again") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8 ({error.reason}): save the file as UTF-8"
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ValueError(f"{path}, line {line} holds a NUL, which no text does: restore the file from a copy")
    return text


def _read_jsonl(path: Path, text: str) -> Iterator[Record]:
    # Not splitlines(), which would also break at the line separators that JSON strings may hold.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{place} is not JSON ({error.msg}): write one JSON object a line") from error
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, or thousands of brackets
            reason = str(error).partition(";")[0]
            raise ValueError(f"{place} cannot be read ({reason}): correct it or drop the line") from error
        if not isinstance(values, dict):
            raise ValueError(f"{place} holds a JSON {type(values).__name__}: write one JSON object a line")
        yield Record(place, values)


def _read_csv(path: Path, text: str) -> Iterator[Record]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    try:
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if not row:
                continue
            if header is None:
                header = _checked_header(place, row)
            elif len(row) != len(header):
                raise ValueError(
                    f"{place} has {len(row)} fields, the header {len(header)}: quote fields with commas"
                )
            else:
                yield Record(place, dict(zip(header, row, strict=True)))
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num} is not CSV ({error}): check the quotes") from error


def _checked_header(place: str, row: list[str]) -> list[str]:
    header = [name.strip() for name in row]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{place} names the columns {repeated} twice: give each column its own name")
    return header
