"""How it is measured: the contenders take turns, and what is compared are neighbours in time."""

from __future__ import annotations

__all__ = ["Timer", "alternate", "main", "ratios"]

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pyro
import torch
import transformers
from cases import CASES, Case

WARM_UP = 2

Row = dict[str, Any]


class Timer:
    """A stopwatch that waits for the accelerator before it looks."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._on_gpu = torch.device(options.device).type == "cuda"
        self._clock = time.perf_counter if options.clock == "wall" else time.process_time

    def now(self) -> float:
        """The time in seconds, once all work is done."""
        if self._on_gpu:
            torch.cuda.synchronize()
        return self._clock()

    def time(self, function: Callable[[], Any]) -> float:
        """The seconds that a call takes."""
        start = self.now()
        function()
        return self.now() - start


def alternate(
    contenders: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Times the contenders in turn, A B A B …, after a warm-up that does not count."""
    timer = Timer(options)
    rounds = [
        {name: timer.time(call) for name, call in contenders.items()}
        for _ in range(WARM_UP + options.repeats)
    ]
    return {name: [times[name] for times in rounds[WARM_UP:]] for name in contenders}


def ratios(ours: list[float], theirs: list[float]) -> Row:
    """The median ratio of neighbours, its quartiles, and the median times in milliseconds."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(pairs, n=4, method="inclusive")
    return {
        "ratio": round(middle, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "ratio_of_fastest": round(min(ours) / min(theirs), 4),
        "ours_ms": milliseconds(ours),
        "plain_ms": milliseconds(theirs),
        "repeats": len(pairs),
    }


def milliseconds(times: list[float]) -> float:
    """The median in milliseconds."""
    return round(1e3 * statistics.median(times), 3)


def main(
    about: str,
    measure: Callable[[Case, argparse.Namespace], Row],
    bars: dict[str, float],
    repeats: int,
    models: Sequence[str] = ("minilm", "smollm2"),
) -> None:
    """Parses the command line, measures each case, and prints a table or one JSON object.

    Args:
        about: What is measured, in one line.
        measure: Measures one case.
        bars: The ratio not to exceed, by case.
        repeats: How often to measure, unless told otherwise.
        models: What to measure, unless told otherwise.
    """
    options = _parse(about, repeats, models)
    torch.set_num_threads(options.threads)
    rows = {name: measure(CASES[name](options.device), options) for name in options.model}
    for name, row in rows.items():
        row |= {"bar": bars.get(name)} | setting(options)
    if options.json:
        print(json.dumps(rows))
        return
    print(about)
    _print_table(rows)


def _parse(about: str, repeats: int, models: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--model", nargs="+", choices=CASES, default=list(models), help="what to measure")
    parser.add_argument("--repeats", type=int, default=repeats, help="how many rounds to time, at least 2")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU"
    )
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to run"
    )
    parser.add_argument(
        "--guide", choices=("flow", "mean_field"), default="flow", help="the variational family"
    )
    clock_help = "wall time, or processor time, which heeds other load less; that only with --threads 1"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock_help)
    options = parser.parse_args()
    if options.clock == "cpu" and (options.threads != 1 or options.device != "cpu"):
        parser.error("--clock cpu adds up all threads and sees no accelerator: use --threads 1 --device cpu")
    if options.repeats < 2:
        parser.error(f"--repeats {options.repeats} gives no quartiles: use 2 or more")
    return options


def setting(options: argparse.Namespace) -> Row:
    """On what it was measured, and when."""
    return {
        "guide": options.guide,
        "clock": options.clock,
        "device": _device_name(options.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package.__name__: package.__version__ for package in (torch, pyro, transformers, peft)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _device_name(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _print_table(rows: dict[str, Row]) -> None:
    for name, row in rows.items():
        low, high = row.pop("quartiles")
        line = f"\n{name}: ratio {row['ratio']:.4f} (quartiles {low:.4f} to {high:.4f})"
        if row["bar"] is not None:
            line += f", bar {row['bar']:g}: {'met' if row['ratio'] <= row['bar'] else 'MISSED'}"
        print(line)
        for flow, figures in row.pop("flows", {}).items():
            low, high = figures["quartiles"]
            print(f"  {flow:<24}{figures['ratio']:.4f} (quartiles {low:.4f} to {high:.4f})")
        for key in [key for key in row if key not in ("ratio", "bar")]:
            print(f"  {key:<18}{row[key]}")
