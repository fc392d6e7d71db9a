"""Forward passes of many draws over batches, as many draws in a pass as memory bears.

What comes before the first random factor is computed once for all draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import pyro.distributions as dist
import torch
from torch import Tensor

from bayeslora_pyro.adapters import KeyedNoise, Operator, Prefix, make_operators, varying
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.tiling import draws_per_pass
from bayeslora_pyro.types import Batch, Weights, main_input, to_device

__all__ = ["FactorDraws", "LocalValues", "Pair", "Reader", "each_batch", "numbers", "prediction_of"]

SHARE_OF_DRAWS = 0.5
"""The share of a memory budget that the draws of the factors may take, to be held from batch to batch."""

Pair: TypeAlias = tuple[Batch, tuple[Tensor, ...]]
"""A batch, and what was read off its predictive distributions."""

Reader: TypeAlias = Callable[[dist.TorchDistribution, Batch], tuple[Tensor, ...]]
"""What is read off the predictive distributions of a batch, `(draws, items, …)` each."""

Operators: TypeAlias = Mapping[str, Sequence[Operator]]

LocalValues: TypeAlias = Callable[[Batch], Weights]
"""The values of the local sites of the items of a batch, by stack name; nothing where there are none."""


class FactorDraws:
    """Draws of the factors, held from batch to batch, or made anew for each pass where a budget has no room for them.

    Args:
        make: Makes draws, from the index of the first and their number. Shapes `(S, L, d_o, d_i)`, by stack name.
        num_draws: The number of draws.
        memory_budget: The budget in bytes; without one, all are held.

    Attributes:
        random: Which factors differ between the draws, by stack name.
    """

    def __init__(
        self, make: Callable[[int, int], Weights], num_draws: int, memory_budget: int | None = None
    ) -> None:
        self.num_draws = num_draws
        self._make = make
        self._held = make(0, num_draws) if memory_budget is None else None
        first = make(0, 1) if self._held is None else self.between(0, 1)
        self._bytes_of_one = sum(value.nbytes for value in first.values())
        if memory_budget is not None and num_draws * self._bytes_of_one <= SHARE_OF_DRAWS * memory_budget:
            self._held = make(0, num_draws)
        self.random = self._compare(first) if self._held is None else varying(self._held)

    @property
    def held_bytes(self) -> int:
        """What they take from batch to batch."""
        return 0 if self._held is None else self.num_draws * self._bytes_of_one

    @property
    def bytes_of_one(self) -> int:
        """What a draw takes in the passes that it is made for; nothing where all are held."""
        return self._bytes_of_one if self._held is None else 0

    def between(self, first: int, stop: int) -> Weights:
        """The draws from one index up to another. Shapes `(S, L, d_o, d_i)`, by stack name."""
        if self._held is None:
            return self._make(first, stop - first)
        return {name: values[first:stop] for name, values in self._held.items()}

    def _compare(self, first: Weights) -> dict[str, list[bool]]:
        """Which factors of any draw are not those of the first."""
        differs = {name: [False] * values.shape[1] for name, values in first.items()}
        for index in range(1, self.num_draws):
            draw = self._make(index, 1)
            pairs = varying({name: torch.cat([first[name], draw[name]]) for name in first})
            differs = {
                name: [a or b for a, b in zip(differs[name], pairs[name], strict=True)] for name in first
            }
        return differs


def each_batch(
    model: BayesianLora,
    batches: Iterable[Batch],
    draws: FactorDraws,
    memory_budget: int | None,
    read: Reader,
    local: LocalValues,
    seed: int,
) -> list[Pair]:
    """Runs each batch with each draw, and returns it with what is read off its predictive distributions.

    Args:
        model: The model.
        batches: What a collator yields.
        draws: The draws of the factors.
        memory_budget: About how many bytes draws and the activations of one pass may take; by default what suits the
            device, for activations alone.
        read: What to keep; it lies on the CPU afterwards.
        local: The values of the local sites.
        seed: The seed of the noise that they are about: it is a function of the seed, the draw, and the place of the
            item in the data.

    Raises:
        ValueError: If there is no batch.
    """
    num_draws, random = draws.num_draws, dict(draws.random)
    pairs, first_item = [], 0
    for batch in batches:
        on_device = to_device(batch, model.adapter.device)
        values, parts = local(on_device), []
        random |= {name: [True] * len(random[name]) for name in values}  # whose noise no two draws share
        prefix = model.shared_prefix(draws.between(0, 1), on_device, random) if num_draws > 1 else None
        size = draws_per_pass(
            model.adapter.peft_model,
            on_device,
            memory_budget,
            num_logits=model.likelihood.model_arguments(on_device).get("logits_to_keep"),
            held=(0 if prefix is None else prefix.num_bytes)
            + (0 if memory_budget is None else draws.held_bytes),
            draw=draws.bytes_of_one,
        )
        for first in range(0, num_draws, size):
            indices = range(first, min(first + size, num_draws))
            chunk = draws.between(first, indices.stop)
            operators = {
                **make_operators(chunk, random=random, rows=len(indices) * len(main_input(on_device))),
                **_local_operators(model, chunk, values, on_device, (seed, indices, first_item)),
            }
            parts.append(read(_predictive(model, chunk, on_device, operators, prefix), on_device))
        pairs.append((batch, tuple(torch.cat(part).cpu() for part in zip(*parts, strict=True))))
        first_item += model.likelihood.num_items(on_device)
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


def prediction_of(pairs: Sequence[Pair]) -> Prediction | RegressionPrediction:
    """The prediction of some batches, from their :func:`numbers`."""
    columns = [_join(parts) for parts in zip(*(values for _, values in pairs), strict=True)]
    known = [batch["labels"].cpu() for batch, _ in pairs if batch.get("labels") is not None]
    observed = torch.cat(known) if len(known) == len(pairs) else None
    if len(columns) == 1:
        return Prediction(columns[0], observed)
    loc, scale = columns
    return RegressionPrediction(loc, scale, observed)


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Joins batches along their items, `-inf` where one has fewer classes than another."""
    if parts[0].dim() == 2:
        return torch.cat(list(parts), dim=1)
    classes = max(part.shape[-1] for part in parts)
    padded = [torch.nn.functional.pad(p, (0, classes - p.shape[-1]), value=-torch.inf) for p in parts]
    return torch.cat(padded, dim=1)


def _local_operators(
    model: BayesianLora, weights: Weights, local: Weights, batch: Batch, key: tuple[int, range, int]
) -> Operators:
    """What applies the factors that have local sites; the key is the seed, the draws, and the first item."""
    if not local:
        return {}
    seed, draws, first_item = key
    rows = model.likelihood.item_of_row(batch)
    noise = KeyedNoise(seed, draws, rows, first_item, batch.get("attention_mask"))
    return model.local_operators(weights, local, batch, noise)


def _predictive(
    model: BayesianLora, weights: Weights, batch: Batch, operators: Operators, prefix: Prefix | None
) -> dist.TorchDistribution:
    """The distribution of the observations, with batch shape `(draws, items)`."""
    outputs = model.run_with(weights, batch, operators=operators, prefix=prefix)
    distribution = model.likelihood.distribution(outputs, batch)
    draws = next(iter(weights.values())).shape[0]
    return distribution.expand((draws, model.likelihood.num_items(batch)))
