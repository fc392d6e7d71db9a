"""What is read off the predictive distributions of draws: of a posterior, of its linearisation, or of the prior."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from bayeslora_pyro import draws
from bayeslora_pyro.config import COLLAPSE, PREDICTIVES
from bayeslora_pyro.curvature import linearised_batches
from bayeslora_pyro.isolation import evaluating, local_rng
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.passes import FactorDraws, Pair, Reader, each_batch
from bayeslora_pyro.traces import stack_weights
from bayeslora_pyro.types import Batch, Weights

if TYPE_CHECKING:
    from bayeslora_pyro.posterior import Posterior

__all__ = ["drawn", "drawn_from_prior"]


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
    if chosen == "network" and posterior.is_linearised:
        warnings.warn(f"{COLLAPSE} Predict with predictive='joint'.", stacklevel=3)
    if chosen != "network" and posterior.depends_on_items:
        raise ValueError(
            f"predictive={chosen!r} needs one posterior for all items, and the noise of this one depends on the "
            "item: predict with 'network'."
        )

    def local(batch: Batch) -> dict[str, Tensor]:
        found = posterior.guide.local_posteriors(batch)
        return {name: distribution.sample() for name, distribution in found.items()}

    def make(first: int, count: int) -> Weights:
        return posterior.weights(count, seed, first)

    with evaluating(model.adapter.peft_model, model, posterior.guide), local_rng(seed, "batches"):
        if chosen == "network":
            held = FactorDraws(make, num_draws, memory_budget)
            return each_batch(model, batches, held, memory_budget, read, local, seed)
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
