"""`bayeslora fit`: from data and a base model to a posterior in a folder."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from bayeslora_pyro import __version__
from bayeslora_pyro.adapters import shard_base
from bayeslora_pyro.checkpoints import read_tensors
from bayeslora_pyro.cli.building import check_method, make_likelihood, make_recipe
from bayeslora_pyro.cli.data import RunData, load_run_data
from bayeslora_pyro.cli.errors import CommandError, blame, one_line
from bayeslora_pyro.cli.language import Language, adapt, device_of, load_language
from bayeslora_pyro.cli.plans import PATHS, Plan, rooted
from bayeslora_pyro.cli.runs import CHECKPOINT, FORMAT, RECORD, write_json
from bayeslora_pyro.cli.terminal import say, show_facts, working
from bayeslora_pyro.cli.trained import finish_trained
from bayeslora_pyro.inference import FitResult
from bayeslora_pyro.methods import Recipe
from bayeslora_pyro.parameters import count_parameters
from bayeslora_pyro.ranks import rank, wait_for_ranks
from bayeslora_pyro.replacing import new_folder
from bayeslora_pyro.tasks import PACKAGED_MODELS, TASKS

__all__ = ["run"]

_LIBRARIES = ("torch", "pyro-ppl", "transformers", "peft")
_POSTERIORS = ("posterior*", "adapter_*", "ensemble.json", "chain-*")
"""The files of a posterior or an ensemble, of which a run that replaces another leaves none."""

_NOT_RECORDED = ("output", "resume", "overwrite")


def run(plan: Plan) -> None:
    """Fits a posterior and writes it."""
    options, known = plan.options, plan.record
    if known is not None and known["finished"]:
        say(f"{plan.folder} is finished: there is nothing to resume.")
        return
    check_method(options)
    with working("reading the data"):
        data = load_run_data(options, None if known is None else known["data"])
    if known is not None and (plan.folder / CHECKPOINT).exists():
        with blame("--resume"):
            read_tensors(plan.folder / CHECKPOINT)
    kind = data.examples.kind
    with working(f"loading {options['model']}"):
        language = load_language(
            options, kind, data.examples.num_outcomes, options["max_length"], divided=options["shard"]
        )
        peft_model = adapt(language, options, data.examples)
    if options["shard"]:
        with blame("--shard"):
            shard_base(peft_model, device_of(options))
    likelihood = make_likelihood(language, options, data.examples)
    tuning = _tuning_loader(options, data, language)
    recipe = make_recipe(peft_model, options, likelihood, len(data.splits.train), tuning)
    device = recipe.model.adapter.device
    recipe.model.to(device)
    recipe.guide.to(device)
    show_facts(_describe(plan.folder, options, data, recipe))
    record = _record(options, data, language, recipe)
    started = time.monotonic()
    loader = language.loader(data.splits.train, options["batch_size"], training=True, seed=options["seed"])
    if options["adapter"] is None:
        result = _fit(plan, record, loader, recipe)
    else:
        result = finish_trained(recipe, loader, options["adapter"])
    _save(plan.folder, record, result)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(f"Saved to {plan.folder} after {minutes} min {seconds} s.")
    say(_next_step(plan.folder, options))


def _tuning_loader(options: Mapping[str, Any], data: RunData, language: Language) -> Any:
    """The tuning items, if the precision of the prior is chosen by them."""
    if options["laplace.precision"] != "tuning":
        return None
    if len(data.splits.tuning) == 0:
        raise CommandError(
            "--laplace.precision tuning needs tuning items, and these data leave none: raise --tuning"
        )
    return language.loader(data.splits.tuning, options["batch_size"])


def _fit(plan: Plan, record: dict[str, Any], loader: Any, recipe: Recipe) -> FitResult:
    """Fits, with the checkpoint in the folder of the run."""
    checkpoint = plan.folder / CHECKPOINT
    if rank() == 0:
        if plan.record is None:
            _remove_checkpoints(plan.folder)
        with blame("--output"):
            write_json(plan.folder / RECORD, record)
    wait_for_ranks()
    steps: list[float] = []
    try:
        return recipe.fit(
            loader,
            checkpoint=checkpoint,
            resume=plan.record is not None,
            callbacks=[lambda row: steps.append(row["step"])],
        )
    except KeyboardInterrupt:
        done = (
            f"after step {int(steps[-1]) + 1} of {recipe.config.num_steps}"
            if steps
            else "before the first step"
        )
        if recipe.num_chains > 1:
            done += f" of fit {len(_checkpoints(plan.folder))} of {recipe.num_chains}"
        raise KeyboardInterrupt(
            f"interrupted {done}; to go on: bayeslora fit --resume --output {plan.folder}"
        ) from None
    except (FloatingPointError, LinAlgError) as error:
        reason = one_line(error).partition(" Trace Shapes")[0]  # Pyro adds the shapes of all sites
        raise FloatingPointError(
            f"{reason}: lower --learning-rate, and give --overwrite to start anew in {plan.folder}"
        ) from error


def _save(folder: Path, record: dict[str, Any], result: FitResult) -> None:
    """Puts posterior and record into the place of the checkpoint, all or nothing; of several processes, the first."""
    if rank():
        return
    metadata = {
        "method": record["options"]["method"],
        "base_model": record["options"]["model"],
        "data": record["data"]["name"],
        "seed": record["options"]["seed"],
        "max_length": record["max_length"],
    }
    if record["fit"] is not None:
        metadata["kl_weight"] = record["fit"]["kl_weight"]
    if record["data"]["classes"]:
        metadata["label_names"] = record["data"]["classes"]
    if record["data"]["target"]:
        metadata |= {f"target_{name}": value for name, value in record["data"]["target"].items()}
    for posterior in result.chains:
        posterior.metadata |= metadata
    with new_folder(folder, RECORD, *_POSTERIORS) as target:
        (result.chains if len(result.chains) > 1 else result.posterior).save(target)
        write_json(target / RECORD, {**record, "finished": True})
    _remove_checkpoints(folder)


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the chains that were begun."""
    return sorted(folder.glob(f"{CHECKPOINT}*"))


def _remove_checkpoints(folder: Path) -> None:
    for path in _checkpoints(folder):
        path.unlink()


def _record(options: Mapping[str, Any], data: RunData, language: Language, recipe: Recipe) -> dict[str, Any]:
    """What `run.json` says."""
    kept = {name: value for name, value in options.items() if name not in _NOT_RECORDED}
    for name in PATHS:
        if kept[name] is not None and kept[name] not in PACKAGED_MODELS:
            kept[name] = rooted(kept[name])
    counts = count_parameters(recipe.model, recipe.guide, members=recipe.num_members)
    return {
        "format": FORMAT,
        "finished": False,
        "options": kept,
        "data": data.record(),
        "max_length": language.max_length,
        "num_draws": recipe.num_draws,
        "objective": _objective(options, recipe),
        "fit": asdict(recipe.config) if options["adapter"] is None else None,
        "parameters": {**asdict(counts), "extra": counts.extra},
        "versions": {
            "bayeslora-pyro": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES},
        },
    }


def _describe(folder: Path, options: Mapping[str, Any], data: RunData, recipe: Recipe) -> dict[str, str]:
    counts = count_parameters(recipe.model, recipe.guide, members=recipe.num_members)
    splits, adapter = data.splits, recipe.model.adapter
    lora: Any = adapter.peft_model.peft_config[adapter.adapter_name]
    modules = sorted({name.rpartition(".")[2] for stack in recipe.model.stacks for name in stack.adapters})
    kind = data.examples.kind + (f" of {len(data.examples.classes)}" if data.examples.classes else "")
    return {
        "data": f"{data.name}, {kind}: {len(splits.train):,} to train on, {len(splits.tuning):,} for tuning, "
        f"{len(splits.test):,} for testing",
        "base model": f"{options['model']}; LoRA of rank {lora.r}, alpha {lora.lora_alpha} on "
        f"{', '.join(modules)}",
        "method": f"{options['method']}, {_objective(options, recipe)}",
        "parameters": f"LoRA's {counts.lora:,}; ours {counts.total - counts.head:,}, which is {abs(counts.extra):,} "
        f"{'more' if counts.extra >= 0 else 'fewer'} than LoRA; head {counts.head:,}",
        "folder": str(folder),
    }


def _objective(options: Mapping[str, Any], recipe: Recipe) -> str:
    """Says what is maximised."""
    after = "" if recipe.finish is None else f", then {recipe.finish.about}"
    if options["adapter"] is not None:
        return "a LoRA that was trained already" + after
    if any(prior.is_random for prior in recipe.model.priors_by_key().values()):
        return tempering("", recipe.config.kl_weight) + after
    return tempering("lora", 0) + after


def tempering(method: str, kl_weight: float) -> str:
    """Says what the divergence was weighted with."""
    if method == "lora":
        return "maximum likelihood, with no divergence to weight"
    if kl_weight == 1:
        return "the ELBO, not tempered (KL weight 1)"
    return f"a tempered ELBO (KL weight {kl_weight:g})"


def _next_step(folder: Path, options: Mapping[str, Any]) -> str:
    task = TASKS.get(options["task"] or "")
    shifts = f" --shift {' '.join(task.shifts)}" if task and task.shifts else ""
    return f"Next: bayeslora evaluate {folder}{shifts}"
