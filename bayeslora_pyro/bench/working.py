"""One cell from beginning to end, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bayeslora_pyro.bench.contenders import describe, fit_key
from bayeslora_pyro.bench.costs import measure_costs
from bayeslora_pyro.bench.data import TEST, load_sets
from bayeslora_pyro.bench.fitting import fit_cell, prepare
from bayeslora_pyro.bench.predictions import predict_sets
from bayeslora_pyro.bench.scoring import PLAIN, score
from bayeslora_pyro.bench.setting import setting
from bayeslora_pyro.bench.storing import CELLS, write_cell
from bayeslora_pyro.bench.tiers import Job

__all__ = ["FITS", "Task", "do", "fit_name"]

FITS = "fits"
"""The folder of unfinished fits, and of those that several methods share, within that of the benchmark."""


@dataclass(frozen=True)
class Task:
    """What a process is given to do.

    Args:
        job: The cell and its protocol.
        output: The folder of the benchmark.
        data_dir: A folder of local files, for the tasks that are not packaged.
        tier: The tier that was asked for, for the record.
    """

    job: Job
    output: Path
    data_dir: Path | None
    tier: str


def do(task: Task) -> dict[str, Any]:
    """Does a cell, writes its folder, and returns its figures on the test set, and its seconds."""
    cell, protocol = task.job.cell, task.job.protocol
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    started = time.perf_counter()
    sets = load_sets(cell, protocol, task.data_dir)
    ground = prepare(cell, protocol, sets)
    place = setting(ground.recipe.model.adapter.device)  # before the fit, in whose time the code may change
    fitted = fit_cell(ground, task.output / FITS / fit_name(task.job))
    predicting = time.perf_counter()
    raw = predict_sets(ground, fitted)
    predicted = time.perf_counter()
    rows = score(
        raw,
        members=ground.recipe.num_members,
        many_draws=ground.recipe.num_draws,
        blob_compat=protocol.blob_compat,
    )
    costs = measure_costs(ground, fitted) | {"predict_seconds": predicted - predicting}
    seconds = time.perf_counter() - started
    record = {
        "tier": task.tier,
        "cell": asdict(cell),
        "protocol": protocol.record(),
        "method": describe(cell, protocol),
        "metadata": {key: value for key, value in fitted.chains[0].metadata.items() if key != "fit"},
        "members": ground.recipe.num_members,
        "items": {"train": len(sets.train)} | {name: len(own) for name, own in sets.evaluated.items()},
        "seconds": round(seconds, 2),
        **place,
    }
    write_cell(task.output / CELLS / cell.name, record, raw, rows, costs)
    plain = [row for row in rows if row["set"] == TEST and row["variant"] == PLAIN]
    return {**plain[-1], "seconds": seconds}


def fit_name(job: Job) -> str:
    """The name of the checkpoint of a fit, the same for all cells whose fits are the same numbers."""
    key = json.dumps(fit_key(job.cell, job.protocol), sort_keys=True)
    return f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
