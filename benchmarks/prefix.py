"""`Posterior.predict` with sixteen draws of the last layers against sixteen forward passes of plain PEFT LoRA."""

from __future__ import annotations

import argparse

import predict
from cases import Case, last_layers
from timing import Row, main

SHARE = 0.25
BARS = {"smollm2": 0.35}


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Predicts one batch, with LoRA on the last quarter of the layers on both sides."""
    case = last_layers(case, SHARE)
    adapted = case.peft_model.peft_config["default"].layers_to_transform
    return predict.measure(case, options) | {"adapted_layers": len(adapted)}


if __name__ == "__main__":
    about = (
        "Prediction with the last quarter of the layers adapted: ours with 16 draws / 16 plain LoRA forwards"
    )
    main(about, measure, BARS, repeats=3, models=["smollm2"])
