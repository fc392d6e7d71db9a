"""`Posterior.predict` with sixteen draws against sixteen forward passes of plain PEFT LoRA."""

from __future__ import annotations

import argparse

import torch
from cases import Case, guide_of
from timing import Row, alternate, main, ratios

from bayeslora_pyro import BayesianLora, Posterior

NUM_DRAWS = 16
BARS = {"minilm": 1.10, "smollm2": 1.10}


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Predicts one batch: draws of all factors included, so that more batches can only do better."""
    model = BayesianLora(case.peft_model, "inducing", case.likelihood)
    posterior = Posterior(model, guide_of(model, options.guide))

    def ours() -> None:
        posterior.predict([case.batch], num_draws=NUM_DRAWS)

    @torch.no_grad()
    def plain() -> None:
        for _ in range(NUM_DRAWS):
            case.likelihood.distribution(case.plain_forward(), case.batch)

    times = alternate({"ours": ours, "plain": plain}, options)
    return ratios(times["ours"], times["plain"]) | {"draws": NUM_DRAWS}


if __name__ == "__main__":
    main("Prediction: ours with 16 draws / 16 plain LoRA forwards, on one batch", measure, BARS, repeats=7)
