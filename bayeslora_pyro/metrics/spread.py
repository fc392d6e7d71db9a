"""Whether intervals hold what they promise, and whether the least certain items are those that err."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bayeslora_pyro.metrics.regression import predictive_cdf

__all__ = ["IntervalCalibration", "Sparsification", "ause", "interval_calibration", "sparsification"]

LEVELS = tuple(step / 20 for step in range(1, 20))


class IntervalCalibration(NamedTuple):
    """A calibration curve of intervals, each `(level,)`; where calibrated, both are the same."""

    level: Tensor
    """The probability of the central interval."""
    coverage: Tensor
    """The share of targets inside."""

    @property
    def error(self) -> float:
        """The mean distance of the curve from the diagonal."""
        return float((self.coverage - self.level).abs().mean())


class Sparsification(NamedTuple):
    """Sparsification curves, each `(item,)`: the mean error of the items that are left, over that of all items."""

    removed: Tensor
    """The share of items taken away, from none to all but one."""
    by_spread: Tensor
    """What is left where the items of the largest spread go first."""
    by_error: Tensor
    """What is left where the items of the largest error go first, which no spread can beat."""


def interval_calibration(
    mean: Tensor, std: Tensor, target: Tensor, levels: Sequence[float] = LEVELS
) -> IntervalCalibration:
    """Compute the share of targets inside the central intervals of the mixture, for several probabilities.

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.
        target: The targets `(item,)`.
        levels: The probabilities of the intervals.

    References:
        | Accurate Uncertainties for Deep Learning Using Calibrated Regression (Kuleshov et al., 2018)
        | https://arxiv.org/abs/1807.00263
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels should hold numbers between 0 and 1, got {tuple(levels)}")
    level = torch.tensor(tuple(levels), dtype=torch.float64)
    distance = (predictive_cdf(mean, std, target) - 0.5).abs()
    return IntervalCalibration(level, (distance <= level[:, None] / 2).double().mean(-1))


def sparsification(spread: Tensor, error: Tensor) -> Sparsification:
    """Compute the mean error among the most certain items, for every number of items taken away.

    Items of equal spread are taken away in random order: the curve is the expectation over it.

    Args:
        spread: The uncertainty of each item: the standard deviation of the mixture of draws
            (:func:`predictive_std`), or of the means of the draws alone. Shape `(item,)`.
        error: The absolute error of each item, `(item,)`.

    Raises:
        ValueError: If the shapes do not fit, a value is NaN, or an error is negative, or all are 0.

    References:
        | Uncertainty Estimates and Multi-Hypotheses Networks for Optical Flow (Ilg et al., 2018)
        | https://arxiv.org/abs/1802.07095
    """
    spread, error = (values.detach().to("cpu", torch.float64) for values in (spread, error))
    if spread.dim() != 1 or spread.shape != error.shape or spread.isnan().any() or error.isnan().any():
        raise ValueError(
            "spread and error should be of shape (item,), with as many items, and without NaN, "
            f"got {tuple(spread.shape)} and {tuple(error.shape)}"
        )
    if not (len(error) and (error >= 0).all() and (error > 0).any()):
        raise ValueError("error should hold absolute errors, at least one of them not 0")
    left = torch.arange(1, len(error) + 1, dtype=torch.float64)
    curves = [
        (values.cumsum(0) / left / error.mean()).flip(0)
        for values in (_errors_by(spread, error), error.sort().values)
    ]
    return Sparsification(1 - left.flip(0) / len(error), *curves)


def ause(spread: Tensor, error: Tensor) -> float:
    """Compute the area between the two curves of :func:`sparsification`; 0 is as good as knowing the errors.

    Args:
        spread: The uncertainty of each item, `(item,)`.
        error: The absolute error of each item, `(item,)`.

    Returns:
        The mean distance of the curves over all numbers of items taken away.
    """
    curves = sparsification(spread, error)
    return float((curves.by_spread - curves.by_error).mean())


def _errors_by(spread: Tensor, error: Tensor) -> Tensor:
    """Sort the errors by spread, ascending; items of equal spread share their mean error."""
    _, inverse, sizes = torch.unique(spread, return_inverse=True, return_counts=True)
    means = torch.zeros(len(sizes), dtype=error.dtype).index_add_(0, inverse, error) / sizes
    return means.repeat_interleave(sizes)
