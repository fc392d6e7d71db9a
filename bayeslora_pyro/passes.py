"""Forward passes of many draws over batches, as many draws in a pass as memory bears."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.tiling import draws_per_pass
from bayeslora_pyro.types import Batch, Weights, to_device

__all__ = ["Reader", "each_batch", "join", "numbers"]

Reader: TypeAlias = Callable[[dist.TorchDistribution, Batch], tuple[Tensor, ...]]
"""What is read off the predictive distributions of a batch, `(draws, items, …)` each."""


def each_batch(
    model: BayesianLora,
    batches: Iterable[Batch],
    weights: Weights,
    memory_budget: int | None,
    read: Reader,
) -> list[tuple[Batch, tuple[Tensor, ...]]]:
    """Runs each batch with each draw, and returns it with what is read off its predictive distributions.

    Args:
        model: The model.
        batches: What a collator yields.
        weights: The draws of the factors by stack name, `(S, L, d_o, d_i)`.
        memory_budget: About how many bytes the activations of one pass may take.
        read: What to keep; it lies on the CPU afterwards.

    Raises:
        ValueError: If there is no batch.
    """
    num_draws = next(iter(weights.values())).shape[0]
    pairs = []
    for batch in batches:
        on_device = to_device(batch, model.adapter.device)
        kept = model.likelihood.model_arguments(on_device).get("logits_to_keep")
        size = draws_per_pass(model.adapter.peft_model, on_device, memory_budget, num_logits=kept)
        chunks = (
            {name: weight[first : first + size] for name, weight in weights.items()}
            for first in range(0, num_draws, size)
        )
        parts = [read(_predictive(model, chunk, on_device), on_device) for chunk in chunks]
        pairs.append((batch, tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))))
    if not pairs:
        raise ValueError("batches is empty: give at least one batch.")
    return pairs


def numbers(predictive: dist.TorchDistribution, batch: Batch) -> tuple[Tensor, ...]:
    """The parameters that a prediction keeps, `(draws, items, …)` each."""
    if isinstance(predictive, dist.Categorical):
        return (predictive.logits,)
    if isinstance(predictive, dist.Normal):
        return predictive.loc, predictive.scale
    raise ValueError("predict knows classes and numbers; for text, score it with log_likelihood.")


def join(parts: Sequence[Tensor]) -> Tensor:
    """Joins batches along their items, `-inf` where one has fewer classes than another."""
    if parts[0].dim() == 2:
        return torch.cat(list(parts), dim=1)
    classes = max(part.shape[-1] for part in parts)
    padded = [torch.nn.functional.pad(p, (0, classes - p.shape[-1]), value=-torch.inf) for p in parts]
    return torch.cat(padded, dim=1)


def _predictive(model: BayesianLora, weights: Weights, batch: Batch) -> dist.TorchDistribution:
    """The distribution of the observations, with batch shape `(draws, items)`."""
    distribution = model.likelihood.distribution(model.run_with(weights, batch), batch)
    draws = next(iter(weights.values())).shape[0]
    return distribution.expand((draws, model.likelihood.num_items(batch)))
