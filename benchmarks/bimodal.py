"""A posterior with two modes, whose log evidence is known: how close the ELBO of each family of guides comes."""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributions import Normal

from bayeslora_pyro import BayesianLora, GaussianPrior, Regression
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import GUIDES, Guide
from bayeslora_pyro.isolation import local_rng, private_pyro

PEAK, TILT, NOISE, SCALE = 1.0, 0.3, 2.0, 1.0  # the weight, the curve, the observations, the prior
FEATURES, ITEMS = 2, 8

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Contender:
    """A guide, and how it is fitted.

    Args:
        guide: Its name.
        options: Its arguments.
        learning_rate: The first step size, which falls to zero as a cosine.
        warm_up: The share of the steps over which the likelihood grows from nothing. A flow that starts as wide as the
            prior keeps both modes that way; at once, it would choose one and stay there.
        bar: The largest gap to the log evidence; None for a family that cannot reach it.
    """

    guide: str
    options: dict[str, Any]
    learning_rate: float = 0.01
    warm_up: float = 0.0
    bar: float | None = None


CONTENDERS = {
    "mean_field": Contender("mean_field", {"scale": 0.3}),
    "full_rank": Contender("full_rank", {"scale": 0.3}),
    "mixture of 2": Contender("mixture", {"scale": 0.3, "spread": 3.0, "components": 2}),
    "mixture of 4": Contender("mixture", {"scale": 0.3, "spread": 3.0, "components": 4}, bar=0.05),
    "flow": Contender(
        "flow",
        {"scale": 1.0, "transform": "neural_autoregressive", "depth": 3},
        learning_rate=0.005,
        warm_up=0.8,
        bar=0.05,
    ),
}


class Parabola(nn.Module):
    """A base model whose output cannot tell the sign of its one layer, but for a small tilt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 1, bias=False)

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=curve(self.layer(input_ids)))


def curve(hidden: Tensor) -> Tensor:
    return hidden.square() + TILT * hidden


def toy() -> tuple[BayesianLora, Batch]:
    """The model, with LoRA's A the only random variable, and its data."""
    with local_rng(0):
        inputs = torch.stack([torch.linspace(0.6, 1.4, ITEMS), torch.zeros(ITEMS)], -1)
        targets = curve(PEAK * inputs[:, 0]) + NOISE * torch.randn(ITEMS)
        base_model = Parabola()
        peft_model = get_peft_model(base_model, LoraConfig(r=1, lora_alpha=1, target_modules=["layer"]))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            parameter.fill_(1.0 if "lora_B" in name else 0.0)
    prior = {"A": GaussianPrior(SCALE), "B": "point"}
    model = BayesianLora(peft_model, prior, Regression(scale=NOISE), num_data=ITEMS)
    return model, {"input_ids": inputs, "labels": targets}


def log_evidence(batch: Batch, points: int = 801, reach: float = 6.0) -> float:
    """The exact log evidence, by quadrature on a grid."""
    axis = torch.linspace(-reach, reach, points, dtype=torch.float64)
    weights = torch.cartesian_prod(axis, axis)
    inputs, targets = batch["input_ids"].double(), batch["labels"].double()
    log_likelihood = Normal(curve(weights @ inputs.T), NOISE).log_prob(targets).sum(-1)
    log_joint = log_likelihood + Normal(0.0, SCALE).log_prob(weights).sum(-1)
    return float(log_joint.logsumexp(0) + 2 * (axis[1] - axis[0]).log())


def many(program: Callable[[Batch], Any], num_draws: int) -> Callable[[Batch], Any]:
    """Runs a model or a guide with many draws at once."""

    def run(batch: Batch) -> Any:
        with pyro.plate("draws", num_draws, dim=-2):
            return program(batch)

    return run


def negative_elbo(
    model: BayesianLora, guide: Guide, batch: Batch, num_draws: int, likelihood_weight: float = 1.0
) -> Tensor:
    parts = PartsELBO().parts(many(model, num_draws), many(guide, num_draws), batch)
    return likelihood_weight * parts.loss(1 / likelihood_weight) / num_draws


def measure(contender: Contender, steps: int, num_draws: int = 128, seed: int = 0) -> dict[str, float]:
    """Fits a guide, and estimates its ELBO with 20,000 fresh draws."""
    start, (model, batch) = time.perf_counter(), toy()
    guide = GUIDES[contender.guide](model, seed=seed, **contender.options)
    optimizer = torch.optim.Adam(guide.parameters(), lr=contender.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with private_pyro(), local_rng("bimodal", seed):
        for step in range(steps):
            warm_up = contender.warm_up * steps
            weight = min(1.0, (step + 1) / warm_up) if warm_up else 1.0
            optimizer.zero_grad()
            negative_elbo(model, guide, batch, num_draws, weight).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            elbos = -torch.stack([negative_elbo(model, guide, batch, 1000) for _ in range(20)])
    return {
        "elbo": float(elbos.mean()),
        "standard_error": float(elbos.std() / len(elbos) ** 0.5),
        "seconds": time.perf_counter() - start,
    }


def best(name: str, steps: int, seeds: int, evidence: float) -> dict[str, Any]:
    """Fits a contender from several starts; the one with the best ELBO counts, and the gaps of all are kept."""
    rows = [measure(CONTENDERS[name], steps, seed=seed) for seed in range(seeds)]
    row = max(rows, key=lambda row: row["elbo"])
    gaps = [evidence - row["elbo"] for row in rows]
    return row | {"gap": min(gaps), "gaps": gaps, "bar": CONTENDERS[name].bar}


def main() -> None:
    """Measures all contenders, and prints the gaps of their ELBOs to the log evidence, in nats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="how many starts; the best ELBO counts")
    parser.add_argument("--guide", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    options = parser.parse_args()
    with pyro.settings.context(module_local_params=True):
        evidence = log_evidence(toy()[1])
        rows = {name: best(name, options.steps, options.seeds, evidence) for name in options.guide}
    if options.json:
        date = datetime.date.today().isoformat()
        print(json.dumps({"log_evidence": evidence, "steps": options.steps, "date": date} | rows))
        return
    print(f"log evidence {evidence:.4f}")
    for name, row in rows.items():
        bar = "" if row["bar"] is None else f", bar {row['bar']}"
        gaps = ", ".join(f"{gap:.4f}" for gap in row["gaps"])
        print(f"{name:12} gap {row['gap']:.4f} ± {row['standard_error']:.4f} of {gaps}{bar}")


if __name__ == "__main__":
    main()
