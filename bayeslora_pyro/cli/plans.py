"""What a call comes to, as far as it can be told before anything slow is imported."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.cli.options import FIT_FIELDS
from bayeslora_pyro.cli.parsing import Call, with_values
from bayeslora_pyro.cli.runs import CHECKPOINT, RECORD, holds_run, read_record
from bayeslora_pyro.config import FitConfig

__all__ = ["PATHS", "SUFFIXES", "Plan", "make_plan", "rooted", "short_name"]

_COLUMNS = ("text_column", "label_column", "target_column")
_FREE = {"resume", "overwrite", "output", "device", "shard", "num_steps", "checkpoint_every"}
"""Options of fit that may be others when a run is resumed."""


_CONFIGS = ("posterior_config.json", "ensemble.json")
"""What a finished run holds one of."""


_OF_ADAPTER = ("r", "lora_alpha", "lora_dropout", "target_modules")
"""Options that a trained LoRA has settled."""


PATHS = ("data", "data_dir", "model", "adapter")
"""Options that are, or may be, paths."""


SUFFIXES = (".jsonl", ".csv", ".gz")
"""How the names of files of data end."""


def short_name(path: str) -> str:
    """The name of a file of data, without folder and suffixes."""
    name = Path(path).name
    while name.lower().endswith(SUFFIXES):
        name = name.rpartition(".")[0]
    return name or Path(path).name


def rooted(path: str) -> str:
    """A path that means the same from any folder; what is no path stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


@dataclass(frozen=True)
class Plan:
    """What a command is to do.

    Args:
        folder: The folder of the run.
        options: The values of all options of the command.
        record: What the run says of itself; None for a new one.
    """

    folder: Path
    options: Mapping[str, Any]
    record: Mapping[str, Any] | None = None


def make_plan(call: Call) -> Plan:
    """Checks the options of a call against each other, and against what is on disk.

    Raises:
        CommandError: With the argument, the value and the cure.
    """
    if call.command in ("bench", "bench report"):
        return _plan_bench(call)
    if call.run is None:
        return _plan_fit(call)
    record = read_record(call.run)
    if not record["finished"]:
        raise CommandError(
            f"DIR {call.run} holds an interrupted fit: finish it with bayeslora fit --resume --output {call.run}"
        )
    if not any((call.run / name).is_file() for name in _CONFIGS):
        raise CommandError(
            f"DIR {call.run} is damaged (no {_CONFIGS[0]}): restore it from a copy, or fit again"
        )
    options, output = call.options, call.options.get("output")
    _check_file("--data", options.get("data"))
    if options.get("json") and Path(options["json"]).is_dir():
        raise CommandError(f"--json {options['json']} is a folder: give a file")
    if call.command == "report" and output and Path(output).suffix not in (".html", ".htm"):
        raise CommandError(f"--output {output}: give a page whose name ends in .html")
    if call.command == "generate":
        _check_prompts(options)
    if call.command == "draws":
        folder = Path(output or call.run / "draws")
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CommandError(f"--output {folder} exists and is not empty: choose a new folder")
    return Plan(call.run, options, record)


def _plan_bench(call: Call) -> Plan:
    options = call.options
    folder = call.run or Path(options["output"] or f"runs/bench-{options['tier']}")
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"{'DIR' if call.run else '--output'} {folder} is a file: give a folder")
    if call.run and not folder.exists():
        raise CommandError(f"DIR {folder}: there is no such folder: give the one that bayeslora bench wrote")
    return Plan(folder, options)


def _check_prompts(options: Mapping[str, Any]) -> None:
    prompt, prompts = options["prompt"], options["prompts"]
    if (prompt is None) == (prompts is None):
        given = "are missing" if prompt is None else "were both given"
        raise CommandError(f"--prompt and --prompts {given}: give a text, or a file of texts")
    _check_file("--prompts", prompts)
    if not 0 < options["top_p"] <= 1:
        raise CommandError(f"--top-p {options['top_p']:g}: give a number above 0 and at most 1")


def _plan_fit(call: Call) -> Plan:
    options = call.options
    if options["resume"] and options["overwrite"]:
        raise CommandError("--resume goes on with a run and --overwrite replaces it: give one of them")
    if options["resume"] and options["output"] and holds_run(Path(options["output"])):
        return _plan_resumed(Path(options["output"]), call.given)
    _check_data(options)
    if options["model"] is None:
        raise CommandError("--model is missing: give minilm, smollm2, a name on the hub, or a folder")
    _check_settings(options)
    _check_shard(options)
    if options["adapter"] is not None:
        _check_adapter(options["adapter"], call.given)
        options |= dict.fromkeys(_OF_ADAPTER)
    folder = Path(options["output"] or default_folder(options))
    if holds_run(folder) and options["resume"]:
        return _plan_resumed(folder, call.given)
    _check_output(folder, options["overwrite"])
    return Plan(folder, options)


def _plan_resumed(folder: Path, given: Mapping[str, Any]) -> Plan:
    """The options of an interrupted run, against which those given now are held."""
    record = read_record(folder)
    known = record["options"]
    for name, value in given.items():
        if name not in _FREE and known.get(name) not in (value, rooted(value) if name in PATHS else value):
            raise CommandError(
                f"--{name.replace('_', '-')} {value}: the run in {folder} has {known.get(name)}: leave it out, or "
                "start a new run in another --output"
            )
    options = with_values("fit", {**known, **{name: given[name] for name in _FREE & set(given)}})
    _check_file("--data", options["data"])
    _check_settings(options)
    _check_shard(options)
    return Plan(folder, options, record)


def default_folder(options: Mapping[str, Any]) -> Path:
    """Where a run goes unless told otherwise: named for its data and its method."""
    data = options["task"] or short_name(options["data"])
    return Path("runs") / f"{data.replace('/', '-')}-{options['method']}"


def _check_data(options: Mapping[str, Any]) -> None:
    task, data = options["task"], options["data"]
    if task is None and data is None:
        if options["resume"] and options["output"]:
            raise CommandError(f"--output {options['output']} holds no run to resume: check the path")
        raise CommandError("--task or --data is missing: give a packaged data set or your own file")
    if task is not None and data is not None:
        raise CommandError(f"--task {task} and --data {data} were both given: give one of them")
    if task is not None:
        for name in _COLUMNS:
            if options[name] is not None:
                flag = f"--{name.replace('_', '-')}"
                raise CommandError(f"{flag} {options[name]} is for your own file: give --data, not --task")
    elif options["data_dir"] is not None:
        raise CommandError(f"--data-dir {options['data_dir']} is for a task: give --task, not --data")
    label, target = options["label_column"], options["target_column"]
    if label is not None and target is not None:
        raise CommandError(
            f"--label-column {label} and --target-column {target} were both given: give the first for a "
            "classification, the second for a regression"
        )
    _check_file("--data", data)


def _check_file(flag: str, path: str | None) -> None:
    if path is None or Path(path).is_file():
        return
    names = [each.name for each in Path(path).parent.iterdir()] if Path(path).parent.is_dir() else []
    close = difflib.get_close_matches(Path(path).name, names, n=1)
    hint = f"did you mean {Path(path).with_name(close[0])}?" if close else "check the path"
    raise CommandError(f"{flag} {path}: there is no such file: {hint}")


def _check_adapter(folder: str, given: Mapping[str, Any]) -> None:
    """A trained LoRA has to be there, and settles what else a fit would be told."""
    if not Path(folder).is_dir():
        raise CommandError(f"--adapter {folder}: there is no such folder: check the path")
    unfit = set(given) & {*_OF_ADAPTER, *FIT_FIELDS, "num_chains"} - {"seed"}
    for name in sorted(unfit):
        why = "has its own" if name in _OF_ADAPTER else "is not fitted"
        value = " ".join(given[name]) if isinstance(given[name], list) else given[name]
        raise CommandError(
            f"--{name.replace('_', '-')} {value}: the LoRA of --adapter {folder} {why}: leave it out"
        )


def _check_settings(options: Mapping[str, Any]) -> None:
    for name in FIT_FIELDS:
        if options[name] is not None:
            with blame(f"--{name.replace('_', '-')}", options[name]):
                FitConfig().replace(**{name: options[name]})


def _check_shard(options: Mapping[str, Any]) -> None:
    """Parts need processes to be in, and weights that can be divided."""
    if not options["shard"]:
        return
    if os.environ.get("WORLD_SIZE", "1") == "1":
        raise CommandError(
            "--shard needs several processes: start them with torchrun --nproc-per-node 2 -m bayeslora_pyro fit …, or "
            "leave it out"
        )
    if options["quantization"] is not None:
        raise CommandError(
            f"--shard cannot divide a base model in {options['quantization']}: leave out --shard, or --quantization"
        )


def _check_output(folder: Path, overwrite: bool) -> None:
    """Nothing that is not ours to replace may be in the folder."""
    if folder.exists() and not folder.is_dir():
        raise CommandError(f"--output {folder} is a file: choose a new folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if not names or (RECORD in names and overwrite):
        return
    if RECORD not in names:
        raise CommandError(f"--output {folder} holds something else ({names[0]}): choose a new folder")
    if read_record(folder)["finished"]:
        raise CommandError(f"--output {folder} holds a finished run: choose a new folder, or add --overwrite")
    cure = "add --resume to go on with it, or --overwrite" if CHECKPOINT in names else "add --overwrite"
    raise CommandError(f"--output {folder} holds an interrupted run: {cure}")
