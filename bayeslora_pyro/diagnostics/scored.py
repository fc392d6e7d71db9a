"""Predictions with their labels, as read back from a container."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics.arrays import Container, datasets, pooled

__all__ = ["ScoredSet", "score"]


@dataclass(frozen=True)
class ScoredSet:
    """The predictions for a set of items, and the truth.

    Args:
        log_probs: The log-probabilities, `(draw, item, class)`, the draws of all chains together.
        labels: The labels, `(item,)`.
    """

    log_probs: Tensor
    labels: Tensor

    @property
    def mean(self) -> Tensor:
        """The log-probabilities of the predictive distribution, `(item, class)`."""
        return metrics.mean_log_probs(self.log_probs)

    @property
    def right(self) -> Tensor:
        """Whether each item is answered rightly, `(item,)`."""
        return self.mean.argmax(-1) == self.labels

    def overconfidence(self) -> tuple[float, float]:
        """Return the mean confidence less the accuracy, and the standard error of the difference."""
        gaps = self.mean.exp().max(-1).values - self.right.double()
        return float(gaps.mean()), float(gaps.std(correction=0)) / math.sqrt(len(gaps))


def score(container: Container) -> ScoredSet | None:
    """Read predictions and labels from a container, if it has both."""
    groups = datasets(container)
    if "posterior_predictive" not in groups or "observed_data" not in groups:
        return None
    log_probs = pooled(groups["posterior_predictive"]["log_probs"], "item", "label")
    labels = groups["observed_data"]["y"].values
    return ScoredSet(torch.from_numpy(log_probs.astype("float64")), torch.from_numpy(labels.astype("int64")))
