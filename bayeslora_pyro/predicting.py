"""What is read off the predictive distributions of draws: of a posterior, of its linearisation, or of the prior."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bayeslora_pyro import draws
from bayeslora_pyro.centring import centre, matching_temperature
from bayeslora_pyro.config import COLLAPSE, PREDICTIVES
from bayeslora_pyro.curvature import linearised_batches
from bayeslora_pyro.draws import without_opposite
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import evaluating, local_rng
from bayeslora_pyro.models import BayesianLora, Regression
from bayeslora_pyro.passes import FactorDraws, Pair, Reader, each_batch, numbers
from bayeslora_pyro.traces import stack_weights
from bayeslora_pyro.types import Batch, Weights, to_device

if TYPE_CHECKING:
    from bayeslora_pyro.posterior import Posterior

__all__ = ["drawn", "drawn_from_prior", "temperature_of", "why_not_centred"]

ONE_POSTERIOR = "needs one posterior for all items, and the noise of this one depends on the item"


def drawn(
    posterior: Posterior,
    batches: Iterable[Batch],
    num_draws: int,
    seed: int,
    memory_budget: int | None,
    read: Reader,
    predictive: str | None,
) -> list[Pair]:
    """Reads what the draws of a posterior predict, through the network or through its linearisation.

    Args:
        posterior: The posterior.
        batches: What a collator yields.
        num_draws: The number of draws.
        seed: The seed of the draws.
        memory_budget: About how many bytes draws and activations may take.
        read: What to keep.
        predictive: What is drawn, one of `PREDICTIVES`; None for what the posterior says.

    Raises:
        ValueError: If there is no such predictive, or the linearised model would need one posterior for all items.
    """
    model, chosen = posterior.model, predictive or posterior.predictive
    if chosen not in PREDICTIVES:
        raise ValueError(f"predictive should be one of {', '.join(PREDICTIVES)}, and is {predictive!r}.")
    if chosen in ("network", "centred") and posterior.is_linearised:
        warnings.warn(f"{COLLAPSE} Predict with predictive='joint'.", stacklevel=3)
    if chosen != "network" and posterior.depends_on_items:
        raise ValueError(f"predictive={chosen!r} {ONE_POSTERIOR}: predict with 'network'.")

    def local(batch: Batch) -> dict[str, Tensor]:
        found = posterior.guide.local_posteriors(batch)
        return {name: distribution.sample() for name, distribution in found.items()}

    def make(first: int, count: int) -> Weights:
        return posterior.weights(count, seed, first)

    with evaluating(model.adapter.peft_model, model, posterior.guide), local_rng(seed, "batches"):
        if chosen == "network":
            held = FactorDraws(make, num_draws, memory_budget)
            return each_batch(model, batches, held, memory_budget, read, local, seed)
        if chosen == "centred":
            return _centred(posterior, batches, num_draws, seed, memory_budget, read)
        return linearised_batches(
            model,
            posterior.guide.factor_posteriors(),
            posterior.mean_adapter(),
            batches,
            num_draws,
            seed,
            chosen,
            read,
            posterior.weights(num_draws, seed) if chosen == "weights" else None,
        )


def _centred(
    posterior: Posterior,
    batches: Iterable[Batch],
    num_draws: int,
    seed: int,
    memory_budget: int | None,
    read: Reader,
) -> list[Pair]:
    """Reads what draws predict that are centred on the mean adapter."""
    if posterior.temperature is None:
        raise ValueError(
            "predictive='centred' needs a temperature: predict with `posterior.centred(train_loader)`."
        )
    scored = _with_the_mean(posterior, batches, num_draws, seed, memory_budget)
    pairs = []
    for batch, (mean, scores) in scored:
        centred = centre(mean, scores, posterior.temperature)[:num_draws]
        predictive = posterior.model.likelihood.of_scores(centred, to_device(batch, centred.device))
        pairs.append((batch, read(predictive, batch)))
    return pairs


def temperature_of(posterior: Posterior, batches: Iterable[Batch], num_draws: int, seed: int) -> float:
    """The temperature at which centred draws are as confident as those of the network; see `Posterior.centred`."""
    with evaluating(posterior.model.adapter.peft_model, posterior.model, posterior.guide):
        scored = _with_the_mean(posterior, batches, num_draws, seed, None)
    return matching_temperature([(mean, scores) for _, (mean, scores) in scored])


def why_not_centred(model: BayesianLora, guide: Guide) -> str | None:
    """What the draws of a guide lack to be centred on the mean adapter; None if nothing."""
    if any(model.prior_of(stack).local is not None for stack in model.stacks):
        return ONE_POSTERIOR
    if isinstance(model.likelihood, Regression) or model.likelihood.is_text:
        return "is for classes and choices"
    with evaluating(model.adapter.peft_model, model, guide):
        site = without_opposite(guide)
    return site and f"needs draws in opposite pairs, and those of {site} have no opposites"


def _with_the_mean(
    posterior: Posterior, batches: Iterable[Batch], num_draws: int, seed: int, memory_budget: int | None
) -> list[tuple[Batch, tuple[Tensor, Tensor]]]:
    """The scores of each batch by the mean adapter, `(item, class)`, and by pairs of draws, `(draw, item, class)`.

    The scores are log-probabilities, which have lost no more than a constant of each item.
    """
    if reason := why_not_centred(posterior.model, posterior.guide):
        raise ValueError(f"predictive='centred' {reason}: predict with 'network'.")
    mean = {name: weights.unsqueeze(0) for name, weights in posterior.mean_adapter().items()}

    def make(first: int, count: int) -> Weights:
        if first:
            return posterior.weights(count, seed, first - 1)
        if count == 1:
            return mean
        rest = posterior.weights(count - 1, seed, 0)
        return {name: torch.cat([weights, rest[name]]) for name, weights in mean.items()}

    held = FactorDraws(make, 1 + num_draws + num_draws % 2, memory_budget)
    pairs = each_batch(posterior.model, batches, held, memory_budget, numbers, lambda _: {}, seed)
    return [(batch, (scores[0], scores[1:])) for batch, (scores,) in pairs]


def drawn_from_prior(
    model: BayesianLora,
    batches: Iterable[Batch],
    num_draws: int,
    seed: int,
    memory_budget: int | None,
    read: Reader,
) -> list[Pair]:
    """Reads what draws from the prior predict; see :func:`drawn`."""

    def make(first: int, count: int) -> Weights:
        each = (draws.prior_weights(model, seed, draw) for draw in range(first, first + count))
        return stack_weights(each, count)

    with evaluating(model.adapter.peft_model, model), local_rng(seed, "batches"):
        held = FactorDraws(make, num_draws, memory_budget)
        return each_batch(model, batches, held, memory_budget, read, model.sample_local, seed)
