"""What a likelihood is: from the output of the language model to the distribution of the observation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.types import Batch, main_input

__all__ = ["Likelihood", "categorical", "categorical_root", "tiles", "wide"]


class Likelihood(AbstractPyroModule):
    """The distribution of the observations of a batch, given what the model puts out.

    The outputs may be those of S tiles of the batch: then the distribution has the batch shape `(S, items)`.
    """

    is_text: ClassVar[bool] = False
    """Whether an observation is a text, which is scored and not predicted."""

    @abstractmethod
    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """The distribution of the observations. Batch shape `(items,)`, or `(S, items)` for S tiles."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""

    def scores(self, outputs: Any, batch: Batch) -> Tensor:
        """The numbers `f` that the distribution is a function of, of the shape `(items, C)`, or `(S, items, C)`.

        A linearised model is linear in them. With :meth:`of_scores` and :meth:`fisher_root` they are what a Laplace
        approximation asks of a likelihood.
        """
        raise NotImplementedError(self._no_scores())

    def of_scores(self, scores: Tensor, batch: Batch) -> TorchDistribution:
        """The distribution of the observations given the scores. Batch shape `(..., items)`."""
        raise NotImplementedError(self._no_scores())

    def fisher_root(self, scores: Tensor) -> Tensor:
        r"""A root of the Fisher information of the scores, :math:`R R^\top = -\mathbb{E} \nabla_f^2 \log p(y \mid f)`.

        Args:
            scores: The scores. Shape `(items, C)`.

        Returns:
            The root. Shape `(items, C, K)`.
        """
        raise NotImplementedError(self._no_scores())

    def _no_scores(self) -> str:
        return (
            f"{type(self).__name__} does not say what it is a function of, in scores, of_scores and fisher_root: "
            "linearised predictions and Laplace take Classification, Choice or Regression."
        )

    @property
    def has_scores(self) -> bool:
        """Whether it has scores, without which there is no linearised model and no Laplace approximation."""
        return type(self).scores is not Likelihood.scores

    def item_of_row(self, batch: Batch) -> Tensor:
        """The item that each row of the inputs belongs to. Shape `(rows,)`."""
        return torch.arange(self.num_items(batch), device=main_input(batch).device)

    def context(self, batch: Batch) -> Tensor | None:
        """The real tokens of which no observation is a part, `(rows, tokens)`: what may tell how noisy an item is."""
        mask: Tensor | None = batch.get("attention_mask")
        return mask

    def column_of_row(self, batch: Batch) -> Tensor | None:
        """The one score that each row of the inputs bears on, `(rows,)`; None where it bears on all of its item."""
        return None

    def observed(self, batch: Batch) -> Tensor | None:
        """The observations of a batch, `(items, ...)`; None if it has none."""
        return batch.get("labels")

    def num_items(self, batch: Batch) -> int:
        """The number of items of a batch: of rows of the first input of the language model."""
        return int(main_input(batch).shape[0])

    def most_draws(self, batch: Batch, wanted: int) -> int:
        """The largest number of draws, up to the one wanted, that can share the items of a batch evenly."""
        return next(count for count in range(wanted, 0, -1) if self._can_share(batch, count))

    def _can_share(self, batch: Batch, count: int) -> bool:
        return self.num_items(batch) % count == 0

    def model_arguments(self, batch: Batch) -> dict[str, Any]:
        """Further arguments for the language model."""
        return {}

    def forward(self, outputs: Any, batch: Batch, num_data: int) -> Tensor:
        """Samples, or observes, the site `y` in a data plate scaled to `num_data` items."""
        distribution, observed = self.distribution(outputs, batch), self.observed(batch)
        indices = torch.arange(self.num_items(batch))
        with pyro.plate("data", num_data, subsample=indices, dim=-1):
            y: Tensor = pyro.sample("y", distribution, obs=observed)
        return y


def wide(values: Tensor) -> Tensor:
    """Takes half precision to float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tiles(values: Tensor, count: int) -> Tensor:
    """Splits `(S * items, ...)` into `(S, items, ...)`; leaves a single tile alone."""
    return values if values.shape[0] == count else values.reshape(-1, count, *values.shape[1:])


def categorical(logits: Tensor, labels: Tensor | None) -> TorchDistribution:
    """Categorical over the last dimension, after a look at the labels."""
    classes = logits.shape[-1]
    if labels is not None and labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, and there are {classes} classes: they "
            f"should lie in 0 … {classes - 1}. Set num_labels of the base model, or map the labels."
        )
    return dist.Categorical(logits=logits)


def categorical_root(scores: Tensor) -> Tensor:
    r"""A root of the covariance of a one-hot label, :math:`R = \mathrm{diag}(\sqrt p) - p \sqrt p^\top`."""
    probs = scores.softmax(-1)
    root = probs.sqrt()
    return root.diag_embed() - probs.unsqueeze(-1) * root.unsqueeze(-2)
