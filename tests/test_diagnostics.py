"""From a posterior to ArviZ, tables and the page, on a small stand-in whose every number is known."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from bayeslora_pyro.types import FactorStack

Q, V = "bert.layer.{}.attention.query", "bert.layer.{}.attention.value"


def stacks(num_layers, grouped=False):
    """One stack of A; B of query and value together, or apart as under grouped-query attention."""
    queries, values = ([name.format(i) for i in range(num_layers)] for name in (Q, V))
    both = tuple(name for pair in zip(queries, values, strict=True) for name in pair)
    if not grouped:
        return FactorStack("A_2x6", "A", (2, 6), both), FactorStack("B_6x2", "B", (6, 2), both)
    return (
        FactorStack("A_2x6", "A", (2, 6), both),
        FactorStack("B_6x2", "B", (6, 2), tuple(queries)),
        FactorStack("B_4x2", "B", (4, 2), tuple(values)),
    )


@dataclass
class FakePosterior:
    """Independent Gaussians for prior and guide, and logits that shift a little with every draw."""

    num_layers: int = 3
    grouped: bool = False
    guide_sd: float = 0.5
    guide_mean: float = 0.3
    num_steps: int = 20
    kl_weight: float = 1.0
    sharpness: float = 2.0
    extra: dict = field(default_factory=dict)

    @property
    def stacks(self):
        return stacks(self.num_layers, self.grouped)

    @property
    def site_dims(self):
        dims = {}
        for stack in self.stacks:
            dims[f"{stack.name}.V"] = ("adapter", "inducing_row", "inducing_col")
            features = ("rank", "in_feature") if stack.role == "A" else ("out_feature", "rank")
            dims[f"{stack.name}.W"] = ("adapter", *features)
        return dims

    @property
    def metadata(self):
        known = {
            "method": "bayesian-lora",
            "base_model": "MiniLM",
            "num_data": 12,
            "kl_weight": self.kl_weight,
        }
        return {**known, "seed": 0, **self.extra}

    @property
    def history(self):
        rows = []
        for step in range(self.num_steps):
            kl_v, kl_w = 2 * math.exp(-step / 80), 200 * math.exp(-step / 40) + 0.7
            fit = -0.7 * math.exp(-step / 90) - 0.25 + 0.04 * math.sin(17 * step)
            rows.append(
                {"step": step, "elbo": fit - self.kl_weight * (kl_v + kl_w), "expected_log_likelihood": fit}
                | {"kl_V": kl_v, "kl_W": kl_w, "kl": kl_v + kl_w}
                | {"kl_weight": self.kl_weight * min(1.0, (step + 1) / (0.3 * self.num_steps))}
            )
        return rows

    def noise(self, num_draws, seed):
        generator = torch.Generator().manual_seed(seed)
        draws = {}
        for stack in self.stacks:
            draws[f"{stack.name}.V"] = torch.randn(num_draws, len(stack), 3, 3, generator=generator)
            draws[f"{stack.name}.W"] = torch.randn(num_draws, len(stack), *stack.shape, generator=generator)
        return draws

    def sample(self, num_draws, seed):
        return {name: self.guide_mean + self.guide_sd * x for name, x in self.noise(num_draws, seed).items()}

    def sample_prior(self, num_draws, seed):
        return self.noise(num_draws, seed)

    def log_weights(self, num_draws, seed):
        def density(mean, sd):
            normal = torch.distributions.Normal(mean, sd)
            draws = self.sample(num_draws, seed).values()
            return sum(normal.log_prob(x.double()).flatten(1).sum(1) for x in draws)

        return density(0.0, 1.0), density(self.guide_mean, self.guide_sd)

    def predict(self, batches, num_draws, seed):
        batches = list(batches)
        logits = torch.cat([batch["logits"] for batch in batches])
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(num_draws, *logits.shape, generator=generator)
        log_probs = (self.sharpness * (logits + 0.5 * noise)).log_softmax(-1)
        labels = None if "labels" not in batches[0] else torch.cat([batch["labels"] for batch in batches])
        return SimpleNamespace(log_probs=log_probs, labels=labels)


def items(num_items=12, seed=0, num_classes=3, labelled=True, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_items, num_classes, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    whole = {"logits": logits} | ({"labels": labels} if labelled else {})
    return [{key: value[i : i + 5] for key, value in whole.items()} for i in range(0, num_items, 5)]
