"""`Posterior.predict` with compiled blocks (`torch.compile`) against the same without."""

from __future__ import annotations

import argparse
import os
from typing import Any

from cases import Case, guide_of
from timing import Row, Timer, alternate, main, milliseconds, ratios

from bayeslora_pyro import BayesianLora, Posterior

NUM_DRAWS = 4
COMPILER: dict[str, Any] = {}
"""What `torch.compile` is told; by default inductor, which needs a C++ compiler on a CPU."""


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Predicts one batch; the first compiled prediction, in which the blocks are compiled, is timed apart."""
    model = BayesianLora(case.peft_model, "inducing", case.likelihood)
    posterior = Posterior(model, guide_of(model, options.guide))

    def plain() -> None:
        posterior.predict([case.batch], num_draws=NUM_DRAWS)

    def ours() -> None:
        with posterior.compiled(**COMPILER):
            plain()

    first = [Timer(options.device).time(ours)]
    times = alternate({"ours": ours, "plain": plain}, options)
    apart = {"draws": NUM_DRAWS, "first_ms": milliseconds(first), "load": os.getloadavg()[0]}
    return ratios(times["ours"], times["plain"]) | apart


if __name__ == "__main__":
    main("Prediction with 4 draws: with compiled blocks / without, on one batch", measure, {}, repeats=5)
