"""Posteriors as diagnostics sees them, small stand-ins whose every number is known, and items for them."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from bayeslora_pyro.diagnostics.arrays import datasets
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

    is_text = False

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
        whole = joined(batches)
        logits = whole["logits"]
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(num_draws, *logits.shape, generator=generator)
        log_probs = (self.sharpness * (logits + 0.5 * noise)).log_softmax(-1)
        return SimpleNamespace(log_probs=log_probs, labels=whole.get("labels"))


@dataclass
class FakeNumbers(FakePosterior):
    """Predicted numbers: the mean of a batch that shifts with every draw, and noise that is as large as it says."""

    noise_scale: float = 1.0

    def predict(self, batches, num_draws, seed):
        whole = joined(batches)
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(num_draws, len(whole["mean"]), generator=generator)
        loc = whole["mean"] + 0.3 * whole["scale"] * noise
        return SimpleNamespace(
            loc=loc, scale=self.noise_scale * whole["scale"].expand_as(loc), labels=whole.get("labels")
        )


class FakeTexts(FakePosterior):
    """Texts, which are scored and not predicted."""

    is_text = True

    def predict(self, batches, num_draws, seed):
        raise AssertionError("texts are not predicted")

    def log_likelihood(self, batches, num_draws, seed):
        generator = torch.Generator().manual_seed(seed + 1)
        return joined(batches)["score"] + 0.1 * torch.randn(num_draws, 1, generator=generator)


def joined(batches):
    batches = list(batches)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def in_batches(whole):
    size = len(next(iter(whole.values())))
    return [{key: value[i : i + 5] for key, value in whole.items()} for i in range(0, size, 5)]


def items(num_items=12, seed=0, num_classes=3, labelled=True, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_items, num_classes, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    whole = {"logits": logits} | ({"labels": labels} if labelled else {})
    return in_batches(whole)


def number_items(num_items=12, seed=0, labelled=True):
    """Items with a mean, a noise scale between 0.2 and 5, and a number drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    mean, scale = (
        3 * torch.randn(num_items, generator=generator),
        0.2 * 25 ** torch.rand(num_items, generator=generator),
    )
    labels = mean + (1 + 0.3**2) ** 0.5 * scale * torch.randn(num_items, generator=generator)
    return in_batches({"mean": mean, "scale": scale} | ({"labels": labels} if labelled else {}))


def values(container, group, name):
    return datasets(container)[group][name].values
