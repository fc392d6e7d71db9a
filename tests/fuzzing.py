"""Loads of damaged posteriors and checkpoints, one after another: refused, exact, or at fault."""

import copy
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora_pyro.adapters import PEFT_CONFIG, PEFT_TENSORS
from bayeslora_pyro.checkpoints import read_tensors, state_of, write_tensors
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.folders import CONFIG, TENSORS
from bayeslora_pyro.guides import FlowGuide
from bayeslora_pyro.isolation import local_rng, private_pyro
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.runs import Run

from . import damage
from .test_folders import bare
from .test_posterior import perturbed
from .tiny import tiny_batch, tiny_bert, tiny_llama

WATCH = damage.Watch()

Outcome = tuple[str, str]
"""What became of a load: "refused", "exact", "as forged" or "fault"; and the message."""


def outcome_of(load: Callable[[], bool], forged: bool) -> Outcome:
    """Loads, and says what became of it.

    Args:
        load: Loads, and says whether all that it got is what was saved.
        forged: Whether the file has digests of its own, so that other numbers are no fault.
    """
    seen = len(WATCH.seen)
    try:
        with WATCH(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exact = load()
    except (ValueError, FileNotFoundError) as error:
        result = ("refused", str(error)) if str(error) else ("fault", "refused without a message")
    except BaseException as error:
        result = ("fault", f"{type(error).__name__}: {error!s:.200}")
    else:
        result = (
            ("exact", "") if exact else ("as forged", "") if forged else ("fault", "silently other numbers")
        )
    return ("fault", f"code: {WATCH.seen[-1]}") if len(WATCH.seen) > seen else result


class Folders:
    """Damaged copies of one posterior, a flow over inducing matrices.

    Args:
        place: A folder to work in.
    """

    def __init__(self, place: Path) -> None:
        self.original, self.copy = place / "original", place / "copy"
        model = BayesianLora(tiny_bert(), InducingPrior(rows=3, cols=3), num_data=20)
        history = [{"step": float(step), "elbo": -1.5} for step in range(3)]
        posterior = Posterior(
            model, perturbed(FlowGuide(model)), history=history, metadata={"task": ["tiny", 1.5]}
        )
        posterior.save(self.original)
        self.base = bare()
        self.state = state_of(model=posterior.model, guide=posterior.guide)
        self.known = (posterior.history, posterior.metadata, 20)
        with WATCH():  # what a sound load imports it may import
            assert self._load(self.original, self.base)
        WATCH.seen.clear()
        self.others = [bare(seed=1), bare(hidden=32), bare(num_layers=1), bare(tiny_llama), nn.Linear(2, 2)]

    def _load(self, folder: Path, base: nn.Module) -> bool:
        posterior = Posterior.load(folder, copy.deepcopy(base))
        state = state_of(model=posterior.model, guide=posterior.guide)
        known = (posterior.history, posterior.metadata, posterior.model.num_data)
        return known == self.known and _same(state, self.state)

    def trial(self, seed: int) -> tuple[str, Outcome]:
        """Damages a copy in the way that a seed says, and loads it."""
        source = random.Random(seed)
        kind = list(FOLDER_DAMAGES)[seed % len(FOLDER_DAMAGES)]
        files, change, forged = FOLDER_DAMAGES[kind]
        shutil.rmtree(self.copy, ignore_errors=True)
        shutil.copytree(self.original, self.copy)
        base = self.base
        if change is None:
            base = source.choice(self.others)
        else:
            change(self.copy / source.choice(files), source)
        if forged:
            damage.resign(self.copy)
        return kind, outcome_of(lambda: self._load(self.copy, base), forged)


FOLDER_DAMAGES: dict[str, tuple[tuple[str, ...], damage.Damage | None, bool]] = {
    "truncated": (damage.FILES, damage.truncate, False),
    "bits flipped": (damage.FILES, damage.flip, False),
    "overwritten": (damage.FILES, damage.overwrite, False),
    "bits flipped in the record": ((CONFIG,), damage.flip, False),
    "wrong shapes": ((TENSORS, PEFT_TENSORS), damage.reshape, False),
    "wrong shapes, new digests": ((TENSORS, PEFT_TENSORS), damage.reshape, True),
    "wrong base model": ((), None, False),
    "wrong version": ((CONFIG,), damage.change_version, False),
    "deep nesting": ((CONFIG, PEFT_CONFIG), damage.nest, False),
    "hostile JSON": ((CONFIG, PEFT_CONFIG), damage.poison_json, False),
    "hostile JSON, new digests": ((CONFIG, CONFIG, PEFT_CONFIG), damage.poison_json, True),
    "hostile PEFT fields, new digests": ((PEFT_CONFIG,), damage.hostile_peft, True),
}
"""By name: the files, what is done to one of them, and whether new digests are put on it."""


class Checkpoints:
    """Damaged copies of the checkpoint of one fit.

    Args:
        place: A folder to work in.
    """

    def __init__(self, place: Path) -> None:
        self.original, self.copy = place / "original.safetensors", place / "copy.safetensors"
        run = self._run(self.original)
        self._step(run)
        self._step(run)
        run.save()
        self.state, self.moments, self.history = _everything(run)
        assert self._resume(self.original, self._run)

    def _run(self, path: Path, rows: int = 3, seed: int = 0) -> Run:
        model = BayesianLora(tiny_bert(), InducingPrior(rows=rows, cols=3), num_data=20, seed=seed)
        return Run(model, FlowGuide(model), FitConfig(num_steps=5, snapshots=2), path)

    def _step(self, run: Run) -> None:
        with private_pyro(), local_rng(run.step):
            run.take_step([tiny_batch()])

    def _resume(self, path: Path, make: Callable[..., Run], **options: Any) -> bool:
        run = make(path, **options)
        run.find_checkpoint(resume=True)
        state, moments, history = _everything(run)
        same = _same(state, self.state) and _same(moments, self.moments) and history == self.history
        if not same:
            self._step(run)  # what was let through has to be usable
        return same

    def trial(self, seed: int) -> tuple[str, Outcome]:
        """Damages a copy in the way that a seed says, and resumes from it."""
        source = random.Random(seed)
        kind = list(CHECKPOINT_DAMAGES)[seed % len(CHECKPOINT_DAMAGES)]
        change, forged = CHECKPOINT_DAMAGES[kind]
        shutil.copy(self.original, self.copy)
        options = {}
        if change is None:
            options = source.choice(({"rows": 4}, {"seed": 1}))
        else:
            change(self.copy, source)
        return kind, outcome_of(lambda: self._resume(self.copy, self._run, **options), forged)


def poison_header(path: Path, source: random.Random) -> None:
    """Puts something hostile into the header of a checkpoint, with a new digest."""
    tensors, header = read_tensors(path)
    write_tensors(path, tensors, damage.poison(header, source))


CHECKPOINT_DAMAGES: dict[str, tuple[damage.Damage | None, bool]] = {
    "truncated": (damage.truncate, False),
    "bits flipped": (damage.flip, False),
    "overwritten": (damage.overwrite, False),
    "wrong shapes, without a digest": (damage.reshape, True),
    "wrong model": (None, False),
    "hostile header, new digest": (poison_header, True),
}
"""By name: what is done to the file, and whether it has a digest of its own then."""


def _everything(run: Run) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    state = {name: value.clone() for name, value in state_of(model=run.model, guide=run.guide).items()}
    moments = {
        f"{index}.{name}": value.clone()
        for index, entries in run.optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }
    return state, moments, [*run.history, *sorted(run.snapshots)]


def _same(ours: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return ours.keys() == wanted.keys() and all(torch.equal(v, wanted[name]) for name, v in ours.items())


def fuzz(
    trial: Callable[[int], tuple[str, Outcome]], count: int
) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Runs trials, and counts what became of each kind; the second part lists the faults."""
    counts: Counter[tuple[str, str]] = Counter()
    faults = []
    for seed in range(count):
        kind, (result, message) = trial(seed)
        counts[kind, result] += 1
        if result == "fault":
            faults.append(f"{kind} (seed {seed}): {message}")
    return counts, faults
