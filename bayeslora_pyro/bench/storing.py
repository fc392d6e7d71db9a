"""The folder of a cell: written whole or not at all, and read only if it is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.bench.predictions import Raw, from_tensors, to_tensors
from bayeslora_pyro.checkpoints import read_tensors, write_tensors
from bayeslora_pyro.replacing import new_folder, restore

__all__ = ["CELLS", "DamagedCell", "StoredCell", "read_cell", "read_cells", "write_cell"]

CELLS = "cells"
"""The folder of the cells within that of the benchmark."""

RECORD, PREDICTIONS, METRICS, COSTS = "cell.json", "predictions.safetensors", "metrics.json", "costs.json"
FORMAT = 1


class DamagedCell(ValueError):
    """A folder that holds no whole cell."""


@dataclass(frozen=True)
class StoredCell:
    """A finished cell.

    Args:
        folder: Where it lies.
        cell: The cell.
        protocol: How it was done.
        record: All that `cell.json` says.
        rows: Its figures; see :func:`~bayeslora_pyro.bench.scoring.score`.
        costs: Its costs; see :func:`~bayeslora_pyro.bench.costs.measure_costs`.
    """

    folder: Path
    cell: Cell
    protocol: Protocol
    record: dict[str, Any]
    rows: list[dict[str, Any]]
    costs: dict[str, Any]

    def raw(self) -> dict[str, Raw]:
        """The predictions by set."""
        return from_tensors(read_tensors(self.folder / PREDICTIONS)[0])


def write_cell(
    folder: Path,
    record: Mapping[str, Any],
    raw: Mapping[str, Raw],
    rows: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Any],
) -> None:
    """Writes a cell; what is there already is replaced once the new one is complete.

    Args:
        folder: The folder of the cell.
        record: The cell, its protocol, the method and the setting.
        raw: The predictions by set.
        rows: The figures.
        costs: The costs.
    """
    with new_folder(folder, RECORD, "*") as target:
        write_tensors(target / PREDICTIONS, to_tensors(raw))
        _write_json(target / METRICS, list(rows))
        _write_json(target / COSTS, dict(costs))
        digests = {name: _digest(target / name) for name in (PREDICTIONS, METRICS, COSTS)}
        _write_json(target / RECORD, {"format": FORMAT, **record, "digests": digests})


def read_cell(folder: Path) -> StoredCell:
    """Reads a cell.

    Raises:
        FileNotFoundError: If there is none.
        DamagedCell: If it is not whole, or has been changed.
    """
    restore(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no cell {folder}.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}, and this version reads {FORMAT}")
        for name, digest in record["digests"].items():
            if _digest(folder / name) != digest:
                raise ValueError(f"{name} is not what was written")
        rows, costs = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (METRICS, COSTS))
        return StoredCell(
            folder, Cell(**record["cell"]), Protocol.of(record["protocol"]), record, rows, costs
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCell(
            f"{folder} is damaged ({error}): run the benchmark again, which does it anew."
        ) from error


def read_cells(output: Path) -> list[StoredCell]:
    """Reads all cells of a benchmark, in the order of their names.

    Raises:
        ValueError: If there is none, or one is damaged.
    """
    folders = sorted(path for path in (output / CELLS).glob("[!.]*") if path.is_dir())
    if not folders:
        raise ValueError(f"{output} holds no finished cell: give the folder that bayeslora bench wrote.")
    return [read_cell(folder) for folder in folders]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
