"""A training step of `fit` with each flow against one with the mean-field guide, on the same batch."""

from __future__ import annotations

import argparse
from typing import Any

from cases import Case
from timing import WARM_UP, Row, Timer, main, ratios
from train_step import NUM_DATA, StampedLoader

from bayeslora_pyro import TRANSFORMS, BayesianLora, FlowGuide, MeanFieldGuide, fit

BARS = {"smollm2": 1.10}


def measure_flow(case: Case, options: argparse.Namespace, name: str) -> Row:
    """Fits a flow guide; after each step, a mean-field guide of the same model takes one of its own."""
    model = BayesianLora(case.peft_model, "inducing", case.likelihood, num_data=NUM_DATA)
    flow, mean_field = FlowGuide(model, transform=name), MeanFieldGuide(model)
    timer = Timer(options.device, options.clock)
    flow_loader, mean_field_loader = (StampedLoader(case.batch, timer.now) for _ in range(2))
    ours: list[float] = []
    theirs: list[float] = []

    def after_mean_field_step(_: Any) -> None:
        theirs.append(timer.now() - mean_field_loader.start)

    def after_flow_step(_: Any) -> None:
        ours.append(timer.now() - flow_loader.start)
        callbacks = [after_mean_field_step]
        fit(model, mean_field, mean_field_loader, num_steps=1, progress=False, callbacks=callbacks)

    num_steps = WARM_UP + options.repeats
    fit(model, flow, flow_loader, num_steps=num_steps, progress=False, callbacks=[after_flow_step])
    return ratios(ours[WARM_UP:], theirs[WARM_UP:])


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Measures every flow; the row is that of the slowest, with all of them under `flows`."""
    flows = {name: measure_flow(case, options, name) for name in TRANSFORMS}
    slowest = max(flows, key=lambda name: flows[name]["ratio"])
    return flows[slowest] | {"slowest": slowest, "flows": flows}


if __name__ == "__main__":
    main("Training step: a flow / mean field, the slowest flow first", measure, BARS, repeats=5)
