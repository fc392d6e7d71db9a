"""The precision of the prior by the predictions of labelled items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from bayeslora_pyro.curvature import covariances, draws_of, record
from bayeslora_pyro.guides import LaplaceGuide
from bayeslora_pyro.isolation import evaluating
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch, to_device

__all__ = ["best_precision_on"]

GRID = (1e-4, 1e6, 41)
"""The precisions that are tried: from, to, and how many, evenly in their logarithm."""

NUM_DRAWS = 512


def best_precision_on(posterior: Posterior, batches: Sequence[Batch], seed: int) -> float:
    """The precision, of a grid, whose predictions give labels the least NLL; the same draws for each.

    The items are gone through once, and one factor of the model at a time has its Jacobian turned into the eigenvectors
    of its curvature, which are the same for the whole grid, and contracted with every covariance.

    Args:
        posterior: The Laplace approximation, with any precision; its guide is left with another.
        batches: Labelled items that are no training items.
        seed: The seed of the draws.

    Raises:
        ValueError: If an item has no label.
    """
    low, high, count = GRID
    grid = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()
    model, weights, guide = posterior.model, posterior.mean_adapter(), cast(LaplaceGuide, posterior.guide)
    several = [guide.set_precision(each).factor_posteriors() for each in grid]
    costs, seen = torch.zeros(count, dtype=torch.float64), 0
    with evaluating(model.adapter.peft_model, model, guide):
        for batch in batches:
            here = to_device(batch, model.adapter.device)
            observed = model.likelihood.observed(here)
            if observed is None:
                raise ValueError("tuning yields batches without labels: give labelled items.")
            kept = record(model, weights, here)
            for index, second in enumerate(covariances(model, several, kept)):
                scores = kept.scores.detach() + draws_of(second, NUM_DRAWS, seed, seen)
                log_probs = model.likelihood.of_scores(scores, here).log_prob(observed).double()
                costs[index] -= (log_probs.logsumexp(0) - math.log(NUM_DRAWS)).sum().cpu()
            seen += kept.num_items
            del kept  # its graph goes before the next batch has one
    return grid[int(costs.argmin())]
