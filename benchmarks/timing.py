"""How it is measured: the contenders take turns, and what is compared are neighbours in time."""

from __future__ import annotations

__all__ = ["Timer", "alternate", "main", "milliseconds", "ratios"]

import argparse
import datetime
import json
import platform
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pyro
import torch
import transformers
from cases import CASES, Case

from bayeslora_pyro.bench.timing import Timer, device_name, milliseconds, ratios

WARM_UP = 2

Row = dict[str, Any]


def alternate(
    contenders: dict[str, Callable[[], Any]], options: argparse.Namespace
) -> dict[str, list[float]]:
    """Times the contenders in turn, A B A B …, after a warm-up that does not count."""
    timer = Timer(options.device, options.clock)
    rounds = [
        {name: timer.time(call) for name, call in contenders.items()}
        for _ in range(WARM_UP + options.repeats)
    ]
    return {name: [times[name] for times in rounds[WARM_UP:]] for name in contenders}


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
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package.__name__: package.__version__ for package in (torch, pyro, transformers, peft)},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


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
