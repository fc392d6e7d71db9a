"""The precision of the prior by the predictions of labelled items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch

from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch

__all__ = ["best_precision_on"]

GRID = (1e-4, 1e6, 41)
"""The precisions that are tried: from, to, and how many, evenly in their logarithm."""

NUM_DRAWS = 512


def best_precision_on(posterior: Posterior, batches: Sequence[Batch], seed: int) -> float:
    """The precision, of a grid, whose predictions give labels the least NLL; the same draws for each.

    Args:
        posterior: A Laplace approximation; its precisions are changed.
        batches: Labelled items that are no training items.
        seed: The seed of the draws.
    """
    low, high, count = GRID
    grid = torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64).tolist()
    costs = [_nll(_with_precision(posterior, each), batches, seed) for each in grid]
    return grid[costs.index(min(costs))]


def _with_precision(posterior: Posterior, precision: float) -> Posterior:
    for stack in posterior.stacks:
        if posterior.model.prior_of(stack).latent is not None:
            own = cast(Any, posterior.guide.get_submodule(stack.name))
            with torch.no_grad():
                own.log_precision.fill_(math.log(precision))
    return posterior


def _nll(posterior: Posterior, batches: Sequence[Batch], seed: int) -> float:
    scores = posterior.log_likelihood(batches, NUM_DRAWS, seed).double()
    return -(scores.logsumexp(0) - math.log(NUM_DRAWS)).mean().item()
