"""Pairs of a tiny model and a guide to fit, and their data in batches."""

from typing import Any

from torch import nn

from bayeslora_pyro.guides import GUIDES, DeltaGuide, Guide
from bayeslora_pyro.models import BayesianLora, GaussianPrior

from .tiny import Batch, tiny_batch, tiny_bert

NUM_DATA = 7


def split(batch: Batch, size: int) -> list[Batch]:
    items = len(batch["labels"])
    return [
        {name: value[first : first + size] for name, value in batch.items()}
        for first in range(0, items, size)
    ]


def data(seed: int = 0) -> list[Batch]:
    return split(tiny_batch(items=NUM_DATA, seed=seed), 3)


def pair(prior: Any = "inducing", guide: str = "mean_field", **options: Any) -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(), prior, num_data=NUM_DATA)
    return model, GUIDES[guide](model, **options)


def certain() -> tuple[BayesianLora, Guide]:
    """A model and a guide without any noise, so that every estimate of the ELBO is the ELBO."""
    model = BayesianLora(tiny_bert(), GaussianPrior(), num_data=NUM_DATA)
    return model, DeltaGuide(model)


def learned(model: nn.Module, guide: nn.Module) -> dict[str, nn.Parameter]:
    return dict(nn.ModuleDict({"model": model, "guide": guide}).named_parameters())
