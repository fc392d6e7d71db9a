"""`Posterior.predict` with sixteen draws of the last layers against sixteen forward passes of plain PEFT LoRA."""

from __future__ import annotations

import argparse

import torch
from cases import Case, guide_of, last_layers
from timing import Row, alternate, main, ratios

from bayeslora_pyro import BayesianLora, Posterior

NUM_DRAWS = 16
SHARE = 0.25
BARS = {"smollm2": 0.35}


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Predicts one batch, with LoRA on the last quarter of the layers on both sides."""
    case = last_layers(case, SHARE)
    model = BayesianLora(case.peft_model, "inducing", case.likelihood)
    posterior = Posterior(model, guide_of(model, options.guide))

    def ours() -> None:
        posterior.predict([case.batch], num_draws=NUM_DRAWS)

    @torch.no_grad()
    def plain() -> None:
        for _ in range(NUM_DRAWS):
            case.likelihood.distribution(case.plain_forward(), case.batch)

    times = alternate({"ours": ours, "plain": plain}, options)
    adapted = case.peft_model.peft_config["default"].layers_to_transform
    return ratios(times["ours"], times["plain"]) | {"draws": NUM_DRAWS, "adapted_layers": len(adapted)}


if __name__ == "__main__":
    about = (
        "Prediction with the last quarter of the layers adapted: ours with 16 draws / 16 plain LoRA forwards"
    )
    main(about, measure, BARS, repeats=3, models=["smollm2"])
