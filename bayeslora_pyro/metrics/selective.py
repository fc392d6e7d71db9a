"""Whether uncertainty tells right answers from wrong ones, and familiar items from foreign ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from bayeslora_pyro.metrics.predictive import ranked_answers

__all__ = ["aurc", "auroc", "risk_coverage"]


def auroc(scores_in: Tensor, scores_out: Tensor) -> float:
    """Compute the probability that an item from outside scores above one from inside (a tie counts one half).

    Args:
        scores_in: The uncertainty of items from the training distribution, `(item,)`.
        scores_out: The uncertainty of items from elsewhere, `(item,)`.

    Raises:
        ValueError: If one of them is no vector, is empty or holds NaN.
    """
    for name, scores in (("scores_in", scores_in), ("scores_out", scores_out)):
        if scores.dim() != 1 or len(scores) == 0 or scores.isnan().any():
            raise ValueError(
                f"{name} should be a vector with items and without NaN, got shape {tuple(scores.shape)}"
            )
    scores = torch.cat([s.detach().to("cpu", torch.float64) for s in (scores_in, scores_out)])
    outside = torch.arange(len(scores)) >= len(scores_in)
    # Ranks, because torchmetrics pushes scores outside [0, 1] through a sigmoid, which merges large ones.
    ranks = torch.unique(scores, return_inverse=True)[1].to(torch.float64) / len(scores)
    return float(binary_auroc(ranks, outside.long(), validate_args=False))


def risk_coverage(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the error rate among the most confident items, for every share of items answered.

    Items of equal confidence are answered in random order: the curve is the expectation over it.

    Returns:
        The coverage and the risk, each `(item,)`, from one item answered to all.

    References:
        | Selective Classification for Deep Neural Networks (Geifman & El-Yaniv, 2017)
        | https://arxiv.org/abs/1705.08500
    """
    _, correct = ranked_answers(log_probs, labels)
    answered = torch.arange(1, len(correct) + 1, dtype=torch.float64)
    return answered / len(correct), (1 - correct).flip(0).cumsum(0) / answered


def aurc(log_probs: Tensor, labels: Tensor) -> float:
    """Compute the area under the risk-coverage curve: the mean risk over all coverages, lower is better."""
    return float(risk_coverage(log_probs, labels)[1].mean())
