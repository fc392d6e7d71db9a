"""What a method costs beside plain LoRA, measured in one process, step beside step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import cycle, islice
from typing import Any

import torch
from torch import nn

from bayeslora_pyro.bench.fitting import Fitted, Ground
from bayeslora_pyro.bench.predictions import timed_draws
from bayeslora_pyro.bench.tiers import BASE
from bayeslora_pyro.bench.timing import Timer, peak_memory, ratios
from bayeslora_pyro.inference import fit
from bayeslora_pyro.isolation import training_modes
from bayeslora_pyro.models import LIKELIHOODS, Likelihood
from bayeslora_pyro.parameters import count_parameters
from bayeslora_pyro.types import Batch, to_device

__all__ = ["measure_costs"]

WARM_UP = 1


def measure_costs(ground: Ground, fitted: Fitted) -> dict[str, Any]:
    """Measures what a method costs; afterwards, the fitted method is of no further use.

    Args:
        ground: The cell made ready.
        fitted: The fitted method, and its seconds.

    Returns:
        `parameters`, those of LoRA, of the head, in all, and on top of LoRA; `step`, the time of a step over that of a
        plain step of PEFT on the same batch, of all members of an ensemble; `inference`, the time of an item with
        `draws` draws over that of one plain pass; `fit_seconds`, `finish_seconds`; `peak_memory_mb` of the process.
    """
    recipe, protocol = ground.recipe, ground.protocol
    device = recipe.model.adapter.device
    timer = Timer(device, "wall" if device.type == "cuda" else "cpu")
    counts = count_parameters(recipe.model, recipe.guide, members=recipe.num_members)
    is_base = ground.cell.method == BASE
    inference = _time_inference(ground, fitted, timer)
    step = None if is_base else _time_steps(ground, timer)
    if step is not None:
        step["ratio"] = round(step["ratio"] * recipe.num_chains, 4)
    return {
        "parameters": {
            "lora": counts.lora,
            "head": counts.head,
            "total": 0 if is_base else counts.total,
            "extra": -counts.lora if is_base else counts.extra,
        },
        "step": step,
        "inference": inference,
        "fit_seconds": fitted.fit_seconds,
        "finish_seconds": fitted.finish_seconds,
        "peak_memory_mb": peak_memory(device),
        "timed": protocol.timed,
    }


class _StampedLoader:
    """Yields some batches again and again, and notes when."""

    def __init__(self, batches: list[Batch], now: Callable[[], float]) -> None:
        self.batches, self.now, self.start = batches, now, 0.0
        self.current = batches[0]

    def __iter__(self) -> Iterator[Batch]:
        for batch in cycle(self.batches):
            self.current, self.start = batch, self.now()
            yield batch


def _time_steps(ground: Ground, timer: Timer) -> dict[str, Any]:
    """Fits on; after each step, plain PEFT takes one of its own on the same batch."""
    recipe = ground.recipe
    rounds = WARM_UP + ground.protocol.timed
    batches = list(islice(ground.loader(ground.sets.train, training=True), rounds))
    loader, plain = _StampedLoader(batches, timer.now), _PlainStep(ground)
    ours: list[float] = []
    theirs: list[float] = []

    def after_our_step(_: Any) -> None:
        ours.append(timer.now() - loader.start)
        theirs.append(timer.time(lambda: plain.take(loader.current)))

    config = recipe.config.replace(num_steps=rounds, snapshots=1, kl_warmup=0.0)
    fit(recipe.model, recipe.guide, loader, config, progress=False, callbacks=[after_our_step])
    return ratios(ours[WARM_UP:], theirs[WARM_UP:])


def _time_inference(ground: Ground, fitted: Fitted, timer: Timer) -> dict[str, Any]:
    """Predicts a batch, and runs plain PEFT on it, in turns."""
    (batch,) = islice(ground.loader(next(iter(ground.sets.evaluated.values()))), 1)
    draws = timed_draws(ground)
    plain = _PlainPass(ground)
    with torch.no_grad(), ExitStack() as modes:
        modes.enter_context(training_modes(ground.peft_model, mode=lambda _: False))
        pairs = [
            (
                timer.time(lambda: fitted.chains.predict([batch], draws, ground.cell.seed)),
                timer.time(lambda: plain.run(batch)),
            )
            for _ in range(WARM_UP + ground.protocol.timed)
        ]
    row = ratios(*zip(*pairs[WARM_UP:], strict=True))
    items = len(batch["labels"])
    for name in ("ours_ms", "plain_ms"):
        row[name.replace("_ms", "_ms_per_item")] = round(row.pop(name) / items, 4)
    return row | {"draws": draws}


class _PlainPass:
    """The PEFT model as it is, for the same log-probabilities as the method."""

    def __init__(self, ground: Ground) -> None:
        self.model: nn.Module = ground.peft_model
        likelihood = ground.recipe.model.likelihood
        self.likelihood: Likelihood = likelihood
        self.adapter = ground.recipe.model.adapter
        self.has_cache = not isinstance(likelihood, LIKELIHOODS["classification"])

    def run(self, batch: Batch) -> Any:
        """The distribution of the labels of a batch."""
        on_device = to_device(batch, self.adapter.device)
        inputs = self.adapter.model_inputs(on_device)
        arguments = self.likelihood.model_arguments(on_device) | (
            {"use_cache": False} if self.has_cache else {}
        )
        return self.likelihood.distribution(self.model(**inputs, **arguments), on_device), on_device


class _PlainStep:
    """The training step of plain PEFT: forward in train mode, backward, AdamW."""

    def __init__(self, ground: Ground) -> None:
        self.forward = _PlainPass(ground)
        self.parameters = [each for each in ground.peft_model.parameters() if each.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3)

    def take(self, batch: Batch) -> None:
        """Takes one step."""
        with training_modes(self.forward.model, mode=lambda _: True), torch.enable_grad():
            self.optimizer.zero_grad()
            distribution, on_device = self.forward.run(batch)
            loss = -distribution.log_prob(on_device["labels"]).mean()
            loss.backward()
            self.optimizer.step()
