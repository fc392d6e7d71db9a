"""How close and how well spread a predicted number is.

A prediction is a mixture of Gaussians, one a draw: ``mean`` and ``std`` are `(draw, item)`, or `(item,)` for
a single one; ``target`` is `(item,)`. Point errors are those of the mean of the mixture.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.special import log_ndtr

from bayeslora_pyro.metrics.correlation import rank_correlation

__all__ = [
    "absolute_error",
    "error_correlation",
    "gaussian_mixture_nll",
    "interval_coverage",
    "mae",
    "predictive_cdf",
    "predictive_std",
    "rmse",
]


def rmse(mean: Tensor, target: Tensor) -> float:
    """Compute the root of the mean squared error of the predictive mean."""
    mean, _, target = _check(mean, None, target)
    return float((mean.mean(0) - target).square().mean().sqrt())


def absolute_error(mean: Tensor, target: Tensor) -> Tensor:
    """Compute the absolute error of the predictive mean, `(item,)`."""
    mean, _, target = _check(mean, None, target)
    return (mean.mean(0) - target).abs()


def mae(mean: Tensor, target: Tensor) -> float:
    """Compute the mean absolute error of the predictive mean."""
    return float(absolute_error(mean, target).mean())


def gaussian_mixture_nll(mean: Tensor, std: Tensor, target: Tensor) -> float:
    r"""Compute the mean negative log-density of the targets, in nats.

    .. math:: -\frac1n \sum_i \log \frac1S \sum_s \mathcal{N}(y_i \mid \mu_{si}, \sigma_{si}^2)

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.
        target: The targets `(item,)`.
    """
    mean, std, target = _check(mean, std, target)
    log_density = -0.5 * ((target - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    return -float((log_density.logsumexp(0) - math.log(len(mean))).mean())


def interval_coverage(mean: Tensor, std: Tensor, target: Tensor, level: float = 0.9) -> float:
    """Compute the share of targets inside the central interval of the mixture; if calibrated, the level.

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.
        target: The targets `(item,)`.
        level: The probability of the interval.
    """
    if not 0 < level < 1:
        raise ValueError(f"level should be between 0 and 1, got {level}")
    cdf = predictive_cdf(mean, std, target)
    return float(((cdf - 0.5).abs() <= level / 2).double().mean())


def predictive_cdf(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    r"""Compute the probability that each target was predicted to stay below; if calibrated, uniform over items.

    .. math:: u_i = \frac1S \sum_s \Phi\!\left(\frac{y_i - \mu_{si}}{\sigma_{si}}\right)

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.
        target: The targets `(item,)`.

    Returns:
        The probability integral transform of the targets, `(item,)`.
    """
    mean, std, target = _check(mean, std, target)
    return log_ndtr((target - mean) / std).exp().mean(0)


def predictive_std(mean: Tensor, std: Tensor) -> Tensor:
    r"""Compute the standard deviation of the mixture, noise and disagreement of the draws together.

    .. math:: \sqrt{\tfrac1S \sum_s \sigma_{si}^2 + \operatorname{Var}_s \mu_{si}}

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.

    Returns:
        The standard deviations, `(item,)`.
    """
    mean, std, _ = _check(mean, std, torch.zeros(mean.shape[-1]))
    return (std.square().mean(0) + mean.var(0, correction=0)).sqrt()


def error_correlation(mean: Tensor, std: Tensor, target: Tensor) -> float:
    """Compute Spearman's rank correlation of predictive standard deviation and absolute error.

    Args:
        mean: The means `(draw, item)` or `(item,)`.
        std: The standard deviations, of a shape that broadcasts with the means.
        target: The targets `(item,)`.

    Returns:
        The correlation of the ranks, equal values sharing their mean rank; 0 where either is the same for all
        items, and so ranks nothing.
    """
    spread = predictive_std(mean, std)
    return rank_correlation(spread, absolute_error(mean, target))


def _check(mean: Tensor, std: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, target = mean.detach().to("cpu", torch.float64), target.detach().to("cpu", torch.float64)
    mean = mean[None] if mean.dim() == 1 else mean
    if target.dim() != 1 or mean.dim() != 2 or mean.shape[1] != len(target) or 0 in mean.shape:
        raise ValueError(
            "mean should be of shape (draw, item) or (item,) and target of shape (item,), "
            f"got {tuple(mean.shape)} and {tuple(target.shape)}"
        )
    std = torch.ones(()) if std is None else std.detach().to("cpu", torch.float64)
    for name, values in (("mean", mean), ("std", std), ("target", target)):
        if values.isnan().any():
            raise ValueError(f"{name} holds {int(values.isnan().sum())} NaN")
    if (std <= 0).any():
        raise ValueError(f"std should be positive, got {float(std.min()):.3g}")
    return mean, std.expand_as(mean), target
