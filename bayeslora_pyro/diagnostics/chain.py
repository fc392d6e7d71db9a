"""From one posterior to one chain of arrays: draws, densities, and what it says of some data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.observations import Groups, as_float64, collect_data, collect_prior_data
from bayeslora_pyro.diagnostics.protocols import LinearisedLike, PosteriorLike
from bayeslora_pyro.diagnostics.updates import update_figures
from bayeslora_pyro.types import Batch

__all__ = ["collect_chain"]


def collect_chain(
    posterior: PosteriorLike,
    batches: Iterable[Batch] | None,
    fitted_to: Iterable[Batch] | None,
    sites: Sequence[str],
    num_draws: int,
    seed: int,
    prior_predictive: bool = False,
) -> Groups:
    """Collect the groups of one posterior, arrays `(draw, ...)`; see ``to_arviz``."""
    shown = drawn = posterior
    if isinstance(posterior, LinearisedLike) and posterior.is_linearised:
        # Draws of scores come in pairs, and show more than as many of weights; densities need those of the weights.
        shown, drawn = posterior.predicting("joint"), posterior.predicting("weights")
    elif isinstance(posterior, LinearisedLike) and posterior.predictive == "centred":
        drawn = posterior.predicting("network")  # the model that was fitted, which the densities are of
    groups: Groups = {}
    for group, sampler in (("posterior", posterior.sample), ("prior", posterior.sample_prior)):
        draws = sampler(num_draws, seed)
        groups[group] = {name: draws[name].detach().float().cpu().numpy() for name in sites}
        factors = {stack.name: draws.get(f"{stack.name}.W") for stack in posterior.stacks}
        known = {name: weights for name, weights in factors.items() if weights is not None}
        groups[group] |= update_figures(known, posterior.stacks)
    log_prior, log_guide = (as_float64(density) for density in posterior.log_weights(num_draws, seed))
    groups["sample_stats"] = {"log_prior": log_prior, "log_guide": log_guide}
    total = None
    if batches is not None:
        batches = batches if shown is drawn else list(batches)  # for they are gone through twice
        groups |= collect_data(shown, batches, num_draws, seed)
        if "log_likelihood" in groups and shown is drawn:
            total = groups["log_likelihood"]["y"].sum(-1)
        elif "log_likelihood" in groups and fitted_to is None:
            total = as_float64(drawn.log_likelihood(batches, num_draws, seed)).sum(-1)
        if prior_predictive:
            groups |= collect_prior_data(posterior, batches, num_draws, seed)
    if fitted_to is not None:
        fitted = _fitted_log_likelihood(drawn, fitted_to, num_draws, seed)
        groups["sample_stats"]["fitted_log_likelihood"] = fitted
        total = fitted.sum(-1)
    if total is not None:
        groups["sample_stats"] |= {"log_likelihood_sum": total, "lp": log_prior + total}
    return groups


def _fitted_log_likelihood(
    posterior: PosteriorLike, fitted_to: Iterable[Batch], num_draws: int, seed: int
) -> NDArray[Any]:
    """The log-likelihood of each training item under each draw, `(draw, item)`."""
    groups = collect_data(posterior, fitted_to, num_draws, seed)
    if "log_likelihood" not in groups:
        raise ValueError("fitted_to should have labels, got batches without")
    scores: NDArray[Any] = groups["log_likelihood"]["y"]
    expected = posterior.metadata.get("num_data", scores.shape[-1])
    if scores.shape[-1] != expected:
        raise ValueError(
            f"fitted_to yields {scores.shape[-1]} items, but the posterior was fitted to {expected}: "
            "pass the whole training data, from a loader with drop_last=False"
        )
    return scores
