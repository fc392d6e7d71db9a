"""Finished cells without a fit: predictions made up, scored and written as a run of the benchmark does."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.bench.contenders import describe
from bayeslora_pyro.bench.predictions import Raw
from bayeslora_pyro.bench.scoring import score
from bayeslora_pyro.bench.storing import CELLS, write_cell

__all__ = ["PROTOCOL", "cell_of", "hang", "raw_of", "write_made_up"]

PROTOCOL = Protocol(num_steps=10, num_test=40, num_tuning=30, dtype="float32")
SETS = {"tuning": 30, "test": 40, "sentiment/amazon": 20, "sentiment/tweets": 20}


def cell_of(method: str = "lora", seed: int = 0, size: Any = 400, task: str = "sentiment") -> Cell:
    """A cell on MiniLM."""
    return Cell(task, "minilm", method, size, seed)


def raw_of(draws: int = 16, seed: int = 0, classes: int = 2, sharpness: float = 3.0) -> dict[str, Raw]:
    """Overconfident predictions of four sets, right two times in three."""
    generator = torch.Generator().manual_seed(seed)
    raw = {}
    for place, (name, items) in enumerate(SETS.items()):
        labels = torch.randint(classes, (items,), generator=torch.Generator().manual_seed(place))
        logits = torch.randn(draws, items, classes, generator=generator)
        shown = labels.where(torch.rand(items, generator=generator) < 0.67, (labels + 1) % classes)
        logits += sharpness * torch.nn.functional.one_hot(shown, classes)
        raw[name] = Raw(logits.log_softmax(-1), labels)
    return raw


def write_made_up(output: Path, cell: Cell, protocol: Protocol = PROTOCOL, **changes: Any) -> Path:
    """Writes a cell of made-up predictions, and returns its folder."""
    members = {"ensemble": 3, "checkpoint-ensemble": 5}.get(cell.method, 1)
    draws = members if members > 1 else 1 if cell.method in ("lora", "map", "base") else 16
    raw = raw_of(draws, seed=cell.seed + 10 * len(cell.method))
    inference = {"ratio": 2.0 * draws, "ours_ms_per_item": 1.5, "draws": min(draws, 10)}
    record = {
        "tier": "cpu",
        "cell": vars(cell),
        "protocol": protocol.record(),
        "method": describe(cell, protocol),
        "members": members,
        "items": {name: len(own.labels) for name, own in raw.items()},
        "seconds": 3.5,
        "versions": {"torch": "2"},
        "revision": "abc",
        "machine": {"device": "a processor", "cores": 2},
        "date": "2026-11-23",
    } | changes
    costs = {
        "parameters": {"lora": 10, "head": 2, "total": 14, "extra": 2},
        "step": {"ratio": 1.1},
        "inference": inference,
        "fit_seconds": None if cell.method == "tfb" else 2.0,
        "finish_seconds": 0.5,
        "peak_memory_mb": 500.0,
        "predict_seconds": 1.0,
    }
    rows = score(
        raw,
        members=members,
        many_draws=record["method"]["num_draws"],
        blob_compat=protocol.blob_compat,
    )
    write_cell(output / CELLS / cell.name, record, raw, rows, costs)
    return output / CELLS / cell.name


def hang(note: str) -> None:
    """Writes the number of its process into a file, and does nothing for a long time."""
    Path(note).write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(600)
