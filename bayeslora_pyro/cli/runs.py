"""The folder of a run: a posterior, and beside it `run.json` with what it takes to score and to resume it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from bayeslora_pyro.cli.errors import CommandError
from bayeslora_pyro.replacing import restore

__all__ = ["CHECKPOINT", "FORMAT", "RECORD", "holds_run", "read_record", "write_json"]

RECORD = "run.json"
CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1

_PARTS: dict[str, type | UnionType] = {
    "finished": bool,
    "options": dict,
    "data": dict,
    "num_draws": int,
    "max_length": int,
    "fit": dict | None,  # a LoRA that was trained already was not fitted
}
"""What a record holds."""

_UNFINISHED = ("finished", "options", "data")
"""What is needed of it to go on with a fit."""


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, once what a kill has cut off is finished."""
    restore(folder)
    return (folder / RECORD).is_file()


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run.

    Raises:
        CommandError: If there is none, or it is damaged.
    """
    path = folder / RECORD
    if not holds_run(folder):
        what = "there is no such folder" if not folder.exists() else f"it holds no run, as it has no {RECORD}"
        raise CommandError(f"DIR {folder}: {what}: give the folder that bayeslora fit wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"]
        wanted = _PARTS if record["finished"] else _UNFINISHED
        missing = [name for name in wanted if not isinstance(record.get(name, NotImplemented), _PARTS[name])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandError(f"{path} is damaged ({error}): restore it from a copy, or fit again") from error
    if known != FORMAT:
        raise CommandError(
            f"{path} has format {known}, and this version reads {FORMAT}: update bayeslora-pyro"
        )
    if missing:
        raise CommandError(f"{path} is damaged (no {missing[0]!r}): restore it from a copy, or fit again")
    return dict(record)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file so that it is never half there."""
    from bayeslora_pyro.checkpoints import replace_file  # imports torch, which reading needs not

    text = json.dumps(content, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
