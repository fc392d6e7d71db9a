"""Predictions with the truth, or texts with their scores, as read back from a container."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import torch
import xarray as xr
from torch import Tensor

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics.arrays import Container, datasets, pooled

__all__ = ["Scored", "ScoredNumbers", "ScoredSet", "ScoredTexts", "score"]


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


@dataclass(frozen=True)
class ScoredNumbers:
    """The predicted numbers of a set of items, and the truth.

    Args:
        loc: The means, `(draw, item)`, the draws of all chains together.
        scale: The standard deviations of the noise, `(draw, item)`.
        observed: The true numbers, `(item,)`.
    """

    loc: Tensor
    scale: Tensor
    observed: Tensor

    @property
    def mean(self) -> Tensor:
        """The predictive means, `(item,)`."""
        return self.loc.mean(0)

    @property
    def std(self) -> Tensor:
        """The predictive standard deviations, `(item,)`."""
        return metrics.predictive_std(self.loc, self.scale)

    @property
    def epistemic(self) -> Tensor:
        """The standard deviations of the means over draws, `(item,)`."""
        return self.loc.std(0, correction=0)

    @property
    def level(self) -> Tensor:
        """The level of the smallest central interval that holds the truth, `(item,)`; if calibrated, uniform."""
        return 2 * (metrics.predictive_cdf(self.loc, self.scale, self.observed) - 0.5).abs()


@dataclass(frozen=True)
class ScoredTexts:
    """The log-likelihoods of a set of texts.

    Args:
        log_likelihood: The log-likelihoods, `(draw, item)`, the draws of all chains together.
    """

    log_likelihood: Tensor

    @property
    def predictive(self) -> Tensor:
        """The log-likelihoods under the posterior predictive of whole texts, `(item,)`."""
        return self.log_likelihood.logsumexp(0) - math.log(len(self.log_likelihood))


Scored: TypeAlias = ScoredSet | ScoredNumbers | ScoredTexts


def score(container: Container) -> Scored | None:
    """Read predictions and observations, or scores of texts, from a container that has them."""
    groups = datasets(container)
    predictions = groups.get("posterior_predictive", xr.Dataset())
    if "observed_data" in groups and "log_probs" in predictions:
        labels = torch.from_numpy(groups["observed_data"]["y"].values.astype("int64"))
        return ScoredSet(_pooled(predictions["log_probs"], "item", "label"), labels)
    if "observed_data" in groups and "loc" in predictions:
        observed = torch.from_numpy(groups["observed_data"]["y"].values.astype("float64"))
        return ScoredNumbers(
            _pooled(predictions["loc"], "item"), _pooled(predictions["scale"], "item"), observed
        )
    if "log_likelihood" in groups:
        return ScoredTexts(_pooled(groups["log_likelihood"]["y"], "item"))
    return None


def _pooled(values: xr.DataArray, *dims: str) -> Tensor:
    return torch.from_numpy(pooled(values, *dims).astype("float64"))
