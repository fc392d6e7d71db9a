"""From one posterior to one chain of arrays: draws, densities, and what it says of some data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_pyro.diagnostics.observations import Groups, as_float64, collect_data
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.types import Batch, FactorStack

__all__ = ["collect_chain", "update_norms"]


def collect_chain(
    posterior: PosteriorLike,
    batches: Iterable[Batch] | None,
    fitted_to: Iterable[Batch] | None,
    sites: Sequence[str],
    num_draws: int,
    seed: int,
) -> Groups:
    """Collect the groups of one posterior, arrays `(draw, ...)`; see ``to_arviz``."""
    groups: Groups = {}
    for group, sampler in (("posterior", posterior.sample), ("prior", posterior.sample_prior)):
        draws = sampler(num_draws, seed)
        groups[group] = {name: draws[name].detach().float().cpu().numpy() for name in sites}
        groups[group] |= update_norms(draws, posterior.stacks)
    log_prior, log_guide = (as_float64(density) for density in posterior.log_weights(num_draws, seed))
    groups["sample_stats"] = {"log_prior": log_prior, "log_guide": log_guide}
    total = None
    if batches is not None:
        groups |= collect_data(posterior, batches, num_draws, seed)
        if "log_likelihood" in groups:
            total = groups["log_likelihood"]["y"].sum(-1)
    if fitted_to is not None:
        total = _fitted_log_likelihood(posterior, fitted_to, num_draws, seed)
    if total is not None:
        groups["sample_stats"] |= {"log_likelihood_sum": total, "lp": log_prior + total}
    return groups


def update_norms(draws: Mapping[str, Tensor], stacks: Sequence[FactorStack]) -> dict[str, NDArray[Any]]:
    r"""Compute the size of each adapter's update, which no rotation of its factors changes.

    .. math:: \|BA\|_F^2 = \mathrm{tr}(B^\top B \, A A^\top)

    Args:
        draws: The weights by site, each `(draw, adapter, rows, cols)`.
        stacks: The factor stacks.

    Returns:
        ``update_norm``, `(draw, adapter)`, adapters in the order of their first appearance in the stacks;
        nothing if a factor of any adapter is no latent site.
    """
    grams: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for stack in stacks:
        weights = draws.get(f"{stack.name}.W")
        if weights is None:
            return {}
        weights = weights.detach().double()
        gram = weights @ weights.mT if stack.role == "A" else weights.mT @ weights
        grams[stack.role] |= dict(zip(stack.adapters, gram.unbind(1), strict=True))
    if not grams["A"] or grams["A"].keys() != grams["B"].keys():
        return {}
    modules = dict.fromkeys(module for stack in stacks for module in stack.adapters)
    squares = [(grams["B"][module] * grams["A"][module]).sum((-2, -1)) for module in modules]
    return {"update_norm": as_float64(torch.stack(squares, dim=-1).clamp(min=0).sqrt())}


def _fitted_log_likelihood(
    posterior: PosteriorLike, fitted_to: Iterable[Batch], num_draws: int, seed: int
) -> NDArray[Any]:
    groups = collect_data(posterior, fitted_to, num_draws, seed)
    if "log_likelihood" not in groups:
        raise ValueError("fitted_to should have labels, got batches without")
    scores = groups["log_likelihood"]["y"]
    expected = posterior.metadata.get("num_data", scores.shape[-1])
    if scores.shape[-1] != expected:
        raise ValueError(
            f"fitted_to yields {scores.shape[-1]} items, but the posterior was fitted to {expected}: "
            "pass the whole training data, from a loader with drop_last=False"
        )
    return np.asarray(scores.sum(-1))
