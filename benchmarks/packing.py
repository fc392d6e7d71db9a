"""A training step of `fit` on packed questions against one on a row for each option, from the same tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from cases import NUM_OPTIONS, Case, guide_of
from timing import WARM_UP, Row, Timer, main, ratios

from bayeslora_pyro import BayesianLora, fit
from bayeslora_pyro.types import Batch

ITEMS, QUESTION_TOKENS, OPTION_TOKENS = 8, 27, 4
"""The means of ARC-Easy under SmolLM2's tokenizer, which has 31 tokens in a row and 44 in a packed one."""


class AlternatingLoader:
    """Yields some batches in turn for ever, and notes when."""

    def __init__(self, batches: list[Batch], timer: Timer) -> None:
        self.batches, self.timer, self.start = batches, timer, 0.0

    def __iter__(self) -> Iterator[Batch]:
        for batch in cycle(self.batches):
            self.start = self.timer.now()
            yield batch


def make_batches(vocabulary: int, device: str) -> list[Batch]:
    """The same questions packed, and with a row for each option."""
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(5, vocabulary, (ITEMS, 1, QUESTION_TOKENS), generator=generator)
    options = torch.randint(5, vocabulary, (ITEMS, NUM_OPTIONS, OPTION_TOKENS), generator=generator)
    rows = torch.cat([question.expand(-1, NUM_OPTIONS, -1), options], dim=-1).flatten(0, 1)
    packed = torch.cat([question[:, 0], options.flatten(1)], dim=-1)
    option = torch.arange(-1, NUM_OPTIONS).repeat_interleave(
        torch.tensor([QUESTION_TOKENS] + [OPTION_TOKENS] * NUM_OPTIONS)
    )
    own = QUESTION_TOKENS + torch.arange(OPTION_TOKENS)
    position = torch.cat([torch.arange(QUESTION_TOKENS), own.repeat(NUM_OPTIONS)])
    labels = torch.arange(ITEMS) % NUM_OPTIONS
    batches: list[Batch] = [
        {
            "input_ids": packed,
            "position_ids": position.expand_as(packed),
            "option": option.expand_as(packed),
            "option_mask": (option >= 0).long().expand_as(packed),
        },
        {
            "input_ids": rows,
            "option_mask": (torch.arange(rows.shape[-1]) >= QUESTION_TOKENS).long().expand_as(rows),
            "item": torch.arange(len(rows)) // NUM_OPTIONS,
        },
    ]
    full = [
        each | {"attention_mask": torch.ones_like(each["input_ids"]), "labels": labels} for each in batches
    ]
    return [{name: value.to(device) for name, value in each.items()} for each in full]


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Fits a guide, a step on packed questions and one on the rows of their options in turn."""
    batches = make_batches(case.peft_model.config.vocab_size, options.device)
    model = BayesianLora(case.peft_model, "inducing", case.likelihood, num_data=ITEMS)
    guide = guide_of(model, options.guide)
    loader = AlternatingLoader(batches, Timer(options.device, options.clock))
    times: list[float] = []

    def after_step(_: Any) -> None:
        times.append(loader.timer.now() - loader.start)

    steps = 2 * (WARM_UP + options.repeats)
    fit(model, guide, loader, num_steps=steps, progress=False, callbacks=[after_step])
    counted = times[2 * WARM_UP :]
    tokens = {
        name: batch["input_ids"].numel() for name, batch in zip(("packed", "rows"), batches, strict=True)
    }
    return ratios(counted[0::2], counted[1::2]) | {"tokens": tokens}


if __name__ == "__main__":
    about = "Training step on questions with four options: packed / a row for each option"
    main(about, measure, {}, repeats=5, models=["smollm2"])
