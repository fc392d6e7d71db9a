"""Likelihoods: from the output of the language model to the distribution of the observation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, final

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.types import Batch

__all__ = ["LIKELIHOODS", "Choice", "Classification", "Likelihood", "NextToken", "Regression"]


class Likelihood(AbstractPyroModule):
    """The distribution of the observations of a batch, given what the model puts out.

    The outputs may be those of S tiles of the batch: then the distribution has the batch shape `(S, items)`.
    """

    @abstractmethod
    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """The distribution of the observations. Batch shape `(items,)`, or `(S, items)` for S tiles."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""

    def observed(self, batch: Batch) -> Tensor | None:
        """The observations of a batch, `(items, ...)`; None if it has none."""
        return batch.get("labels")

    def num_items(self, batch: Batch) -> int:
        """The number of items of a batch."""
        return int(batch["input_ids"].shape[0])

    def model_arguments(self, batch: Batch) -> dict[str, Any]:
        """Further arguments for the language model."""
        return {}

    def forward(self, outputs: Any, batch: Batch, num_data: int) -> Tensor:
        """Samples, or observes, the site `y` in a data plate scaled to `num_data` items."""
        count = self.num_items(batch)
        with pyro.plate("data", num_data, subsample=torch.arange(count), dim=-1):
            y: Tensor = pyro.sample("y", self.distribution(outputs, batch), obs=self.observed(batch))
        return y


def _tiles(values: Tensor, count: int) -> Tensor:
    """Splits `(S * items, ...)` into `(S, items, ...)`; leaves a single tile alone."""
    return values if values.shape[0] == count else values.reshape(-1, count, *values.shape[1:])


def _checked_labels(labels: Tensor | None, num_classes: int) -> Tensor | None:
    if labels is not None and labels.numel() and not (0 <= int(labels.min()) and int(labels.max()) < num_classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, but the model has {num_classes} classes: "
            f"they should lie in 0 … {num_classes - 1}. Set num_labels of the base model, or map the labels."
        )
    return labels


@final
class Classification(Likelihood):
    """One of the classes of a sequence classifier: categorical over `outputs.logits` of shape `(items, classes)`."""

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {}

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the classes. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        logits = _tiles(outputs.logits.float(), self.num_items(batch))
        _checked_labels(batch.get("labels"), logits.shape[-1])
        return dist.Categorical(logits=logits)
