"""The folder of a run: a posterior, and beside it `run.json` with what it takes to score and to resume it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora_pyro.cli.errors import CommandError

__all__ = ["CHECKPOINT", "RECORD", "read_record", "write_json"]

RECORD = "run.json"
CHECKPOINT = "checkpoint.safetensors"
FORMAT = 1

_PARTS = ("finished", "options")
_PARTS_OF_FINISHED = ("data", "num_draws", "max_length", "fit")


def read_record(folder: Path) -> dict[str, Any]:
    """Reads the record of a run.

    Raises:
        CommandError: If there is none, or it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        what = "there is no such folder" if not folder.exists() else f"it holds no run, as it has no {RECORD}"
        raise CommandError(f"{folder}: {what}: give the folder that bayeslora fit wrote")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = record["format"]
        wanted = (*_PARTS, *(_PARTS_OF_FINISHED if record["finished"] else ()))
        missing = [name for name in wanted if name not in record]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{path} is damaged ({error!r}): restore it from a copy, or fit again") from error
    if known != FORMAT:
        raise CommandError(
            f"{path} has format {known}, and this version reads {FORMAT}: update bayeslora-pyro"
        )
    if missing:
        raise CommandError(f"{path} is damaged (no {missing[0]!r}): restore it from a copy, or fit again")
    return dict(record)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file under another name and then moves it into place, so that it is never half there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
