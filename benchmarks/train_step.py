"""A training step of `fit` against a training step of plain PEFT LoRA, on the same batch."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from cases import Case, guide_of
from timing import WARM_UP, Row, Timer, main, ratios

from bayeslora_pyro import BayesianLora, fit
from bayeslora_pyro.types import Batch

NUM_DATA = 400
BARS = {"minilm": 1.10, "smollm2": 1.05}


class StampedLoader:
    """Yields one batch for ever, and notes when."""

    def __init__(self, batch: Batch, now: Callable[[], float]) -> None:
        self.batch, self.now, self.start = batch, now, 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.start = self.now()
            yield self.batch


def plain_step(case: Case) -> Callable[[], None]:
    """The training step of plain PEFT: forward, backward, AdamW."""
    parameters = [parameter for parameter in case.peft_model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        case.plain_loss().backward()
        optimizer.step()

    return step


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Fits a guide; after each step, plain PEFT takes one of its own with the same PEFT model."""
    model = BayesianLora(case.peft_model, "inducing", case.likelihood, num_data=NUM_DATA)
    guide = guide_of(model, options.guide)
    timer = Timer(options.device, options.clock)
    loader, plain = StampedLoader(case.batch, timer.now), plain_step(case)
    ours: list[float] = []
    theirs: list[float] = []

    def after_our_step(_: Any) -> None:
        ours.append(timer.now() - loader.start)
        theirs.append(timer.time(plain))

    fit(model, guide, loader, num_steps=WARM_UP + options.repeats, progress=False, callbacks=[after_our_step])
    return ratios(ours[WARM_UP:], theirs[WARM_UP:])


if __name__ == "__main__":
    main("Training step: ours / plain PEFT LoRA, eval mode on both sides", measure, BARS, repeats=30)
