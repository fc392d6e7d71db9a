"""What becomes of kills, damaged files and mistakes: how often each ended as it should, and every fault.

It needs the development extras, as it runs what the tests run, only more often: `tests/test_reliability.py` has thirty
of each.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a wrong name of a model is not asked for on the hub
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bayeslora_pyro.inference import fit
from tests.cli_files import save_bert, save_llama
from tests.fuzzing import Checkpoints, Folders, fuzz
from tests.kills import kill_checkpoints, kill_posteriors
from tests.mistakes import data_mistakes, fault_of, make_run, option_mistakes, other_mistakes
from tests.test_resume import LOADERS, OPTIONS, STEPS, fresh, interrupt_at, parameters

Row = dict[str, Any]


def kills(kill: Callable[[Path, int], Counter[str]], place: Path, count: int) -> Row:
    """Saves that are killed."""
    results = kill(place, count)
    return {"trials": count, "results": dict(results), "faults": [r for r in results if "fault" in r]}


def damaged(kind: type[Folders] | type[Checkpoints], place: Path, count: int) -> Row:
    """Loads of damaged files."""
    place.mkdir()
    counts, faults = fuzz(kind(place).trial, count)
    results: Counter[str] = Counter()
    for (_, result), number in counts.items():
        results[result] += number
    by_kind = {f"{name}: {result}": number for (name, result), number in sorted(counts.items())}
    return {"trials": count, "results": dict(results), "kinds": by_kind, "faults": faults}


def resumed(place: Path) -> Row:
    """Fits that are interrupted after each step in turn, and resumed: the largest difference of a number."""
    largest, trials = 0.0, 0
    for guide, loader in itertools.product(("flow", "mean_field"), LOADERS):
        whole = fit(*fresh(guide), LOADERS[loader](), **OPTIONS)
        for step in range(STEPS - 1):
            checkpoint = place / f"{guide}-{loader}-{step}"
            try:
                fit(
                    *fresh(guide),
                    LOADERS[loader](),
                    checkpoint=checkpoint,
                    callbacks=[interrupt_at(step)],
                    **OPTIONS,
                )
            except KeyboardInterrupt:
                trials += 1
            ours = fit(*fresh(guide), LOADERS[loader](), checkpoint=checkpoint, resume=True, **OPTIONS)
            pairs = [parameters(result.posterior.model, result.posterior.guide) for result in (ours, whole)]
            gaps = [float((value - pairs[1][name]).abs().max()) for name, value in pairs[0].items()]
            largest = max(largest, *gaps, float(ours.history != whole.history))
    faults = [f"a difference of {largest}"] if largest else []
    return {"trials": trials, "results": {"equal to the last bit": trials - len(faults)}, "faults": faults}


def mistakes(place: Path) -> Row:
    """Command lines and files of data that are wrong."""
    shelf = place / "shelf"
    shelf.mkdir(parents=True)
    names = {"bert": save_bert(place / "bert"), "llama": save_llama(place / "llama")}
    names["run"] = make_run(shelf, names["bert"])
    rows = [*data_mistakes(shelf), *other_mistakes(shelf), *option_mistakes()]
    faults = [fault for row in rows if (fault := fault_of(row, shelf, **names))]
    results = {"one line, exit code 2, nothing written": len(rows) - len(faults)}
    return {"trials": len(rows), "results": results, "faults": faults}


def measure(num_kills: int, num_damages: int) -> dict[str, Row]:
    """Measures everything."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return {
            "kill -9 during the save of a posterior": kills(kill_posteriors, place / "a", num_kills),
            "kill -9 during the write of a checkpoint": kills(kill_checkpoints, place / "b", num_kills),
            "damaged folder of a posterior": damaged(Folders, place / "c", num_damages),
            "damaged checkpoint": damaged(Checkpoints, place / "d", num_damages),
            "fit interrupted and resumed": resumed(place),
            "wrong command line or file": mistakes(place / "e"),
        }


def main() -> None:
    """Parses the command line, measures, and prints a table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--kills", type=int, default=100, help="how many saves to kill (default: 100)")
    parser.add_argument("--damages", type=int, default=1000, help="how many files to damage (default: 1000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    output, sys.stdout = sys.stdout, sys.stderr  # what the commands say is not what is measured
    try:
        rows = measure(options.kills, options.damages)
    finally:
        sys.stdout = output
    if options.json:
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        print(json.dumps({"rows": rows, "date": date, "torch": torch.__version__}))
        return
    print("| what | trials | what became of it | faults |\n|---|--:|---|--:|")
    for name, row in rows.items():
        ends = ", ".join(f"{count} {result}" for result, count in row["results"].items())
        print(f"| {name} | {row['trials']:,} | {ends} | {len(row['faults'])} |")
    for fault in itertools.chain.from_iterable(row["faults"] for row in rows.values()):
        print(f"- {fault}")


if __name__ == "__main__":
    main()
