"""All figures at once, and how sure they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bayeslora_pyro.metrics.calibration import ece
from bayeslora_pyro.metrics.predictive import mean_log_probs
from bayeslora_pyro.metrics.scores import accuracy, brier, nll
from bayeslora_pyro.metrics.selective import aurc

__all__ = ["bootstrap", "evaluate_log_probs"]


def evaluate_log_probs(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute the figures that every method is compared by.

    Args:
        log_probs: The log-probabilities `(draw, item, class)` or `(item, class)`.
        labels: The labels `(item,)`.

    Returns:
        ``accuracy``, ``nll``, ``ece`` (15 bins), ``brier``, ``aurc``, ``n`` (items), ``ece_10``, ``ece_20``
        and ``ece_adaptive``.
    """
    mean = mean_log_probs(log_probs)
    return {
        "accuracy": accuracy(mean, labels),
        "nll": nll(mean, labels),
        "ece": ece(mean, labels),
        "brier": brier(mean, labels),
        "aurc": aurc(mean, labels),
        "n": len(mean),
        "ece_10": ece(mean, labels, num_bins=10),
        "ece_20": ece(mean, labels, num_bins=20),
        "ece_adaptive": ece(mean, labels, adaptive=True),
    }


def bootstrap(
    metric: Callable[..., float],
    *tensors: Tensor,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute a percentile interval of a metric by resampling its items with replacement.

    Args:
        metric: A function of the tensors, such as :func:`ece`.
        tensors: The arguments of the metric, items first: `mean_log_probs(log_probs), labels`.
        num_resamples: The number of resamples.
        level: The probability of the interval.
        seed: The seed of the resampling, which leaves the global generator alone.

    Returns:
        The lower and the upper end.

    References:
        | Bootstrap Methods: Another Look at the Jackknife (Efron, 1979)
        | https://doi.org/10.1214/aos/1176344552
    """
    if num_resamples < 1:
        raise ValueError(f"num_resamples should be at least 1, got {num_resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level should be between 0 and 1, got {level}")
    sizes = sorted({len(tensor) for tensor in tensors})
    if len(sizes) != 1:
        raise ValueError(
            f"tensors should have their items first and equally many, got sizes {sizes}: average draws with "
            "mean_log_probs before"
        )
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(num_resamples, dtype=torch.float64)
    for i in range(num_resamples):
        index = torch.randint(sizes[0], (sizes[0],), generator=generator)
        values[i] = metric(*(tensor[index] for tensor in tensors))
    tail = (1 - level) / 2
    return float(values.quantile(tail)), float(values.quantile(1 - tail))
