"""The raw predictions of a cell: the log-probabilities of each item under each draw, in the order of the items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora_pyro.bench.cells import NUM_DRAWS
from bayeslora_pyro.bench.contenders import num_draws_of
from bayeslora_pyro.bench.fitting import Fitted, Ground
from bayeslora_pyro.guides import DeltaGuide
from bayeslora_pyro.metrics import mean_log_probs
from bayeslora_pyro.models import PointPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import Prediction
from bayeslora_pyro.tasks import Examples

__all__ = ["TIMED_DRAWS", "Raw", "from_tensors", "predict_sets", "timed_draws", "to_tensors"]

TIMED_DRAWS = 10
"""With how many draws the cost of inference is measured, as is usual."""


@dataclass(frozen=True)
class Raw:
    """What is kept of the predictions of a set.

    Args:
        log_probs: The log-probabilities of the classes. Shape `(draw, item, class)`.
        labels: The true classes. Shape `(item,)`.
        mean: Those at the posterior mean, where the draws are of weights. Shape `(1, item, class)`.
        many: The average of as many draws as the method itself takes, where these are of scores and cheap. Shape
            `(1, item, class)`.
    """

    log_probs: Tensor
    labels: Tensor
    mean: Tensor | None = None
    many: Tensor | None = None


def predict_sets(ground: Ground, fitted: Fitted) -> dict[str, Raw]:
    """Predicts all sets of a cell.

    Args:
        ground: The cell made ready.
        fitted: The fitted method.
    """
    mean = _at_the_mean(fitted) if ground.recipe.num_draws > 1 else None
    return {
        name: _predict(ground, fitted, mean, examples) for name, examples in ground.sets.evaluated.items()
    }


def timed_draws(ground: Ground) -> int:
    """How many draws a method takes where the cost of inference is measured."""
    return num_draws_of(ground.recipe, TIMED_DRAWS)


def _predict(ground: Ground, fitted: Fitted, mean: Posterior | None, examples: Examples) -> Raw:
    num_draws = num_draws_of(ground.recipe, max(NUM_DRAWS))
    chains = fitted.chains

    def run(posterior: Any, count: int) -> Tensor:
        loader = ground.loader(examples)
        prediction = posterior.predict(loader, count, ground.cell.seed)
        if not isinstance(prediction, Prediction):
            raise TypeError(f"the benchmark is of classes and choices, and {ground.cell.task} has numbers.")
        return _masked(_in_order(prediction.log_probs, loader), ground, examples)

    many = None
    if chains[0].is_linearised:
        many = mean_log_probs(run(chains, ground.recipe.num_draws)).float()[None]
    return Raw(
        run(chains, num_draws),
        torch.tensor(examples.labels),
        None if mean is None else run(mean, 1),
        many,
    )


def _at_the_mean(fitted: Fitted) -> Posterior | None:
    """The LoRA that is the posterior mean; None where there is none, or it is that of the method itself."""
    if len(fitted.chains) > 1 or fitted.chains[0].is_linearised or fitted.chains[0].depends_on_items:
        return None
    posterior = fitted.chains[0]
    model = posterior.model.with_prior(PointPrior())
    guide = DeltaGuide(model)
    guide.from_lora(posterior.mean_adapter())
    return Posterior(model, guide)


def _in_order(log_probs: Tensor, loader: Any) -> Tensor:
    """Puts items that came sorted by length into the order of their examples."""
    place = torch.tensor(list(loader.sampler))
    ordered = torch.empty_like(log_probs)
    ordered[:, place] = log_probs
    return ordered


def _masked(log_probs: Tensor, ground: Ground, examples: Examples) -> Tensor:
    """Takes the letters away that an item has no choice for, unless the published quirk is wanted."""
    if not examples.choices or ground.protocol.blob_compat:
        return log_probs
    sizes = torch.tensor([len(choices) for choices in examples.choices])
    missing = torch.arange(log_probs.shape[-1]) >= sizes[:, None]
    return log_probs.masked_fill(missing, -torch.inf).log_softmax(-1)


def to_tensors(raw: Mapping[str, Raw]) -> dict[str, Tensor]:
    """The predictions as named tensors, `set.part`."""
    return {
        f"{name}.{part}": tensor
        for name, own in raw.items()
        for part, tensor in vars(own).items()
        if tensor is not None
    }


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Raw]:
    """The inverse of :func:`to_tensors`."""
    parts: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, part = full_name.rpartition(".")
        parts.setdefault(name, {})[part] = tensor
    return {name: Raw(**own) for name, own in parts.items()}
