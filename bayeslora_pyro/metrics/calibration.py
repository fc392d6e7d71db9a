"""Whether confidence means what it says: reliability bins, calibration error, temperature scaling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bayeslora_pyro.metrics.predictive import check_labels, mean_log_probs, ranked_answers

__all__ = ["ReliabilityBins", "ece", "reliability_bins", "temperature_scale"]


class ReliabilityBins(NamedTuple):
    """The bars of a reliability diagram, each `(bin,)`; the means of an empty bin are NaN."""

    confidence: Tensor
    """The mean probability of the most probable class."""
    accuracy: Tensor
    """The share of right answers."""
    num_items: Tensor
    """The number of items."""


def reliability_bins(
    log_probs: Tensor, labels: Tensor, num_bins: int = 15, adaptive: bool = False
) -> ReliabilityBins:
    """Sort items into bins by the probability of their most probable class.

    Equally wide bins are closed below and open above, the last one closed. Adaptive bins hold equally many
    items; items of equal confidence share their mean accuracy, so the order of the items does not matter.

    Args:
        log_probs: The log-probabilities `(draw, item, class)` or `(item, class)`.
        labels: The labels `(item,)`.
        num_bins: The number of bins.
        adaptive: Whether the bins hold equally many items instead of being equally wide.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins should be at least 1, got {num_bins}")
    confidence, correct = ranked_answers(log_probs, labels)
    if adaptive:
        index = torch.arange(len(confidence)) * num_bins // len(confidence)
    else:
        edges = torch.linspace(0, 1, num_bins + 1, dtype=confidence.dtype)
        index = (torch.bucketize(confidence, edges, right=True) - 1).clamp(max=num_bins - 1)
    count = torch.bincount(index, minlength=num_bins)
    return ReliabilityBins(
        confidence=torch.bincount(index, confidence, num_bins) / count,
        accuracy=torch.bincount(index, correct, num_bins) / count,
        num_items=count,
    )


def ece(log_probs: Tensor, labels: Tensor, num_bins: int = 15, adaptive: bool = False) -> float:
    r"""Compute the expected calibration error of the most probable class.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, | \mathrm{acc}_b - \mathrm{conf}_b |

    Args:
        log_probs: The log-probabilities `(draw, item, class)` or `(item, class)`.
        labels: The labels `(item,)`.
        num_bins: The number of bins.
        adaptive: Whether the bins hold equally many items instead of being equally wide.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599
    """
    # Not torchmetrics' function: it rounds confidences to float32, which moves them over bin edges, gives a
    # confidence of exactly 1 a bin of its own, and takes probabilities for logits where rounding exceeds 1.
    bins = reliability_bins(log_probs, labels, num_bins, adaptive)
    gaps = (bins.accuracy - bins.confidence).abs().nan_to_num()
    return float((gaps * bins.num_items).sum() / bins.num_items.sum())


def temperature_scale(logits: Tensor, labels: Tensor, low: float = 1e-2, high: float = 1e2) -> float:
    r"""Fit the one temperature that minimises the negative log-likelihood of a tuning split.

    .. math:: T = \arg\min_T -\sum_n \log \mathrm{softmax}(z_n / T)_{y_n}

    The loss is convex in :math:`1/T`, so its slope is bisected, on the scale of :math:`\log T`.

    Args:
        logits: The logits or log-probabilities `(item, class)`, or log-probabilities `(draw, item, class)`.
        labels: The labels of the tuning split, `(item,)`.
        low: The lowest temperature, returned where every answer is right.
        high: The highest temperature, returned where the logits are worth nothing.

    Returns:
        The temperature; `log_softmax(logits / T)` are the scaled log-probabilities.

    References:
        | On Calibration of Modern Neural Networks (Guo et al., 2017)
        | https://arxiv.org/abs/1706.04599
    """
    if not 0 < low < high:
        raise ValueError(f"low and high should satisfy 0 < low < high, got {low} and {high}")
    if logits.dim() == 2:
        logits = logits.detach().to("cpu", torch.float64).log_softmax(-1)
    # A class ruled out entirely stays ruled out, but at a finite price.
    logits = mean_log_probs(logits).clamp(min=-1e4)
    labels = check_labels(labels, *logits.shape)
    chosen = logits.gather(1, labels[:, None])

    def slope(log_temperature: float) -> float:
        scaled = (logits / math.exp(log_temperature)).softmax(-1)
        return float((scaled * (logits - chosen)).sum())

    lower, upper = math.log(low), math.log(high)
    for _ in range(60):
        middle = (lower + upper) / 2
        # With respect to 1/T: where the loss still falls, 1/T should grow.
        lower, upper = (lower, middle) if slope(middle) < 0 else (middle, upper)
    return math.exp((lower + upper) / 2)
