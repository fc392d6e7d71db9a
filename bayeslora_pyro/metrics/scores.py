"""Proper scores and accuracy of a predictive distribution over classes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics.functional.classification import multiclass_accuracy

from bayeslora_pyro.metrics.predictive import check_labels, mean_log_probs

__all__ = ["accuracy", "brier", "nll"]


def accuracy(log_probs: Tensor, labels: Tensor) -> float:
    """Compute the share of items whose most probable class is the label (the first class on a tie)."""
    mean = mean_log_probs(log_probs)
    labels = check_labels(labels, *mean.shape)
    answers = mean.argmax(-1)
    return float(multiclass_accuracy(answers, labels, mean.shape[1], average="micro", validate_args=False))


def nll(log_probs: Tensor, labels: Tensor) -> float:
    """Compute the mean negative log-likelihood of the labels, in nats."""
    mean = mean_log_probs(log_probs)
    labels = check_labels(labels, *mean.shape)
    return -float(mean.gather(1, labels[:, None]).mean())


def brier(log_probs: Tensor, labels: Tensor) -> float:
    """Compute the Brier score, between 0 and 2: the mean squared distance to the one-hot label.

    References:
        | Verification of Forecasts Expressed in Terms of Probability (Brier, 1950)
        | https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    mean = mean_log_probs(log_probs)
    labels = check_labels(labels, *mean.shape)
    return float((mean.exp() - one_hot(labels, mean.shape[1])).square().sum(-1).mean())
