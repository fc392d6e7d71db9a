"""The predictive distribution of a set of draws, and the two parts of its uncertainty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["aleatoric", "check_labels", "entropy", "epistemic", "mean_log_probs", "ranked_answers"]


def mean_log_probs(log_probs: Tensor) -> Tensor:
    r"""Average the probabilities of the draws in log space.

    .. math:: \log \bar p(c \mid x) = \log \frac{1}{S} \sum_{s=1}^{S} p_s(c \mid x)

    Args:
        log_probs: The log-probabilities `(draw, item, class)`, or `(item, class)`, returned as they are.

    Returns:
        The log-probabilities of the predictive distribution, `(item, class)`, in float64.

    Raises:
        ValueError: If the shape is another, a value is NaN or the probabilities do not sum to one.
    """
    draws = _check_log_probs(log_probs)
    return draws if draws.dim() == 2 else draws.logsumexp(dim=0) - math.log(len(draws))


def entropy(log_probs: Tensor) -> Tensor:
    r"""Compute the entropy of the predictive distribution, :math:`H[\bar p]`, in nats, `(item,)`."""
    return _entropies(mean_log_probs(log_probs))


def aleatoric(log_probs: Tensor) -> Tensor:
    r"""Compute the expected entropy of a draw, :math:`\frac1S \sum_s H[p_s]`, in nats, `(item,)`."""
    entropies = _entropies(_check_log_probs(log_probs))
    return entropies if entropies.dim() == 1 else entropies.mean(0)


def epistemic(log_probs: Tensor) -> Tensor:
    r"""Compute the mutual information of the label and the weights, `(item,)`: what data could settle.

    .. math:: I[y; W \mid x] = H[\bar p] - \frac1S \sum_s H[p_s] \ge 0

    References:
        | Bayesian Active Learning for Classification and Preference Learning (Houlsby et al., 2011)
        | https://arxiv.org/abs/1112.5745
    """
    return (entropy(log_probs) - aleatoric(log_probs)).clamp(min=0)


def check_labels(labels: Tensor, num_items: int, num_classes: int) -> Tensor:
    """Check that the labels are class indices, one for each item, and returns them on the CPU as int64."""
    if labels.shape != (num_items,):
        raise ValueError(f"labels should be of shape ({num_items},), one an item, got {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels should be integer class indices, got {labels.dtype}: use labels.long()")
    labels = labels.detach().to("cpu", torch.int64)
    wrong = ((labels < 0) | (labels >= num_classes)).nonzero()
    if len(wrong):
        item = int(wrong[0])
        raise ValueError(
            f"labels[{item}] is {int(labels[item])}, but log_probs has {num_classes} classes, "
            f"0 to {num_classes - 1}: drop unlabelled items or give the classes consecutive indices"
        )
    return labels


def ranked_answers(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sort items by confidence and tells which are answered rightly.

    Items of equal confidence share their mean correctness: no figure depends on the order of the items.

    Returns:
        The confidence, ascending, and the correctness in [0, 1], each `(item,)`.
    """
    mean = mean_log_probs(log_probs)
    labels = check_labels(labels, *mean.shape)
    top, answers = mean.exp().clamp(max=1).max(-1)
    levels, inverse, sizes = torch.unique(top, return_inverse=True, return_counts=True)
    correct = torch.zeros_like(levels).index_add_(0, inverse, (answers == labels).to(levels)) / sizes
    return levels.repeat_interleave(sizes), correct.repeat_interleave(sizes)


def _entropies(log_probs: Tensor) -> Tensor:
    parts: Tensor = torch.special.entr(log_probs.exp())
    return parts.sum(-1)


def _check_log_probs(log_probs: Tensor) -> Tensor:
    if log_probs.dim() not in (2, 3) or 0 in log_probs.shape:
        raise ValueError(
            "log_probs should be of shape (draw, item, class) or (item, class) with no empty dimension, "
            f"got {tuple(log_probs.shape)}"
        )
    log_probs = log_probs.detach().to("cpu", torch.float64)
    if log_probs.isnan().any():
        raise ValueError(f"log_probs holds {int(log_probs.isnan().sum())} NaN: has the fit diverged?")
    totals = log_probs.logsumexp(-1).flatten()
    worst = float(totals[totals.abs().argmax()])
    # Wide enough for the rounding of bfloat16, narrow enough to catch logits.
    if abs(worst) > 2e-2:
        raise ValueError(
            f"log_probs should be normalised, but the log of a sum of probabilities is {worst:.3g}, not 0: "
            "apply log_softmax to logits first"
        )
    return log_probs
