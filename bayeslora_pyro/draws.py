"""What is drawn from a guide or a prior, each draw a function of the seed and its index."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.opposite import drawing, is_symmetric, opposite_pairs
from bayeslora_pyro.traces import is_named

__all__ = [
    "guide_trace",
    "guide_weights",
    "mean_of",
    "mean_weights",
    "prior_trace",
    "prior_weights",
    "without_opposite",
]

MEAN_PAIRS = 512
"""Opposite pairs of draws that make a mean where there is no closed form."""


def guide_trace(guide: Guide, seed: int, draw: int) -> poutine.Trace:
    """The trace of the guide in a draw."""
    with drawing(seed, draw):
        return poutine.trace(guide).get_trace()


def prior_trace(model: BayesianLora, seed: int, draw: int) -> poutine.Trace:
    """The trace of the prior in a draw."""
    with local_rng(seed, "prior", draw):
        return poutine.trace(model.sample_weights).get_trace()


def without_opposite(guide: Guide) -> str | None:
    """Names a site of the guide whose draws do not come in opposite pairs; None where all do, or stand still."""
    sites: dict[str, Any] = dict(guide_trace(guide, 0, 0).nodes)
    distributions = {name: site["fn"] for name, site in sites.items() if is_named(site)}
    moving = {name: each for name, each in distributions.items() if not isinstance(each, dist.Delta)}
    return next((name for name, each in moving.items() if not is_symmetric(each)), None)


def guide_weights(model: BayesianLora, guide: Guide, seed: int, draw: int) -> dict[str, Tensor]:
    """The factors in a draw from the guide, points among them. Shapes `(L, d_o, d_i)`, by stack name."""
    with drawing(seed, draw):
        weights = guide()
    fixed = {stack.name: stack for stack in model.stacks if stack.name not in weights}
    return weights | {name: model.prior_of(stack).sample_weights(stack) for name, stack in fixed.items()}


def prior_weights(model: BayesianLora, seed: int, draw: int) -> dict[str, Tensor]:
    """The factors in a draw from the prior. Shapes `(L, d_o, d_i)`, by stack name."""
    with local_rng(seed, "prior", draw):
        return model.sample_weights()


def mean_weights(model: BayesianLora, guide: Guide) -> dict[str, Tensor]:
    """The mean of each factor; see :meth:`~bayeslora_pyro.Posterior.mean_adapter`. Shapes `(L, d_o, d_i)`."""
    weights = {}
    with local_rng("mean"):
        for stack in model.stacks:
            prior = model.prior_of(stack)
            if prior.latent is None:
                weights[stack.name] = prior.sample_weights(stack)
                continue
            latent = mean_of(guide.get_posterior(stack))
            conditional = prior.conditional(stack, latent, **guide.hyper_means(stack))
            weights[stack.name] = prior.lift(stack, latent) if conditional is None else conditional.mean
    return {name: weight.detach().clone() for name, weight in weights.items()}


def mean_of(distribution: dist.TorchDistribution) -> Tensor:
    """The mean, by averaging opposite pairs of draws where there is no closed form."""
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        with torch.no_grad():
            mean = opposite_pairs(distribution, MEAN_PAIRS).mean(0)
    return mean
