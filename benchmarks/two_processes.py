"""Training by two gloo processes against one, with as many items for each: throughput, and the same losses."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from cases import CASES, guide_of

from bayeslora_pyro import BayesianLora, fit

BAR = 0.8
"""The share of twice the throughput of one process, where the cores allow it."""

WARM_UP = 2


def steps_of(options: argparse.Namespace, accumulate: int, num_steps: int) -> tuple[list[float], list[float]]:
    """Fits; returns the seconds of each step but the first ones, and the ELBO of each."""
    torch.set_num_threads(1)
    case = CASES[options.model]("cpu")
    model = BayesianLora(case.peft_model, "inducing", case.likelihood, num_data=400)
    times = [time.perf_counter()]
    result = fit(
        model,
        guide_of(model, "mean_field"),
        [case.batch],
        num_steps=num_steps,
        accumulate=accumulate,
        progress=False,
        callbacks=[lambda row: times.append(time.perf_counter())],
    )
    durations = [after - before for before, after in itertools.pairwise(times)]
    return durations[WARM_UP:], [row["elbo"] for row in result.history]


def one_of_two(rank: int, folder: str, options: argparse.Namespace) -> None:
    """What one of the processes does."""
    place = Path(folder)
    distributed.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=2)
    found = steps_of(options, 1, options.steps + WARM_UP)
    distributed.destroy_process_group()
    (place / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measures one process, two, and one with two batches a step, whose losses those of two should be."""
    alone, _ = steps_of(options, 1, options.steps + WARM_UP)
    _, wanted = steps_of(options, 2, options.steps + WARM_UP)
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(one_of_two, (folder, options), nprocs=2)  # type: ignore[no-untyped-call]
        (together, losses), (_, others) = (
            json.loads((Path(folder) / f"{k}.json").read_text()) for k in (0, 1)
        )
    one, two = statistics.median(alone), statistics.median(together)
    return {
        "efficiency": round(one / two, 3),
        "bar": BAR,
        "one_ms": round(1e3 * one, 1),
        "two_ms": round(1e3 * two, 1),
        "largest_difference_of_losses": max(abs(a - b) for a, b in zip(losses, wanted, strict=True)),
        "both_processes_agree": losses == others,
        "model": options.model,
        "steps": options.steps,
        "cores": os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    """Parses the command line, measures, and prints a table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--model", choices=CASES, default="minilm", help="what to measure (default: minilm)")
    parser.add_argument("--steps", type=int, default=20, help="how many steps to time (default: 20)")
    options = parser.parse_args()
    row = measure(options)
    print(json.dumps(row) if options.json else "\n".join(f"{name:<30}{value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
