"""The benchmarks of scale: the peak of memory that they see, and what they print."""

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("cases", "predict_memory", "two_processes")
MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def scripts_by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def load(name: str) -> ModuleType:
    return __import__(name)


def peak_of(count: int, keep: bool) -> int:
    kept = []
    with load("predict_memory").LivePeak() as live:
        for _ in range(count):
            made = torch.ones(MEGABYTE // 4)
            made.add_(1).view(-1, 2)  # neither changes in place nor views take anything
            kept += [made] if keep else []
            del made
    return live.peak


def test_the_peak_is_what_is_alive_at_once() -> None:
    assert peak_of(4, keep=True) == 4 * MEGABYTE
    assert peak_of(4, keep=False) == MEGABYTE


def test_peaks_are_held_against_the_budget(monkeypatch, capsys) -> None:
    load("predict_memory").DRAWS = (1, 4)
    row = load("predict_memory").measure("tiny", 2**18)
    assert row["worst"] == max(figures["share_of_budget"] for figures in row["draws"].values())
    one, four = row["draws"].values()
    assert four["peak_mb"] > one["peak_mb"]
    monkeypatch.setattr(
        sys, "argv", ["predict_memory.py", "--json", "--model", "tiny", "--budget", "1000000"]
    )
    runpy.run_path(str(FOLDER / "predict_memory.py"), run_name="__main__")
    assert json.loads(capsys.readouterr().out)["tiny"]["draws"].keys() == {str(2**k) for k in range(8)}


def test_steps_are_timed_and_scored() -> None:
    options = argparse.Namespace(model="tiny", steps=2)
    times, losses = load("two_processes").steps_of(options, 2, 4)
    assert (len(times), len(losses)) == (2, 4)
    assert min(times) > 0
