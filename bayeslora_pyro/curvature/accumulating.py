"""One pass over the data, from which curvature and log-likelihood are had."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayeslora_pyro.curvature.recording import Record, record
from bayeslora_pyro.curvature.structures import Structure
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.types import Batch, Weights, to_device

__all__ = ["Totals", "accumulate"]


@dataclass
class Totals:
    """What a pass over the data adds up, beside the curvature.

    Args:
        num_items: The number of items.
        log_likelihood: Their log-likelihood, in nats.
    """

    num_items: int = 0
    log_likelihood: float = 0.0


def accumulate(
    model: BayesianLora,
    weights: Weights,
    batches: Iterable[Batch],
    structure: Structure,
    *,
    fisher: Literal["exact"] | int = "exact",
    seed: int = 0,
) -> Totals:
    r"""Adds the curvature of each batch to a structure: :math:`\sum_n J_n^\top H_n J_n`, H the Fisher information.

    Args:
        model: The model, in eval mode.
        weights: The factors at which it is linearised. Shapes `(L, d_o, d_i)`.
        batches: Labelled items.
        structure: What to add to.
        fisher: `"exact"`, with a backward pass for each column of the root of H, or so many labels drawn for each
            item, whose gradients have H as their covariance.
        seed: The seed of these labels.

    Raises:
        ValueError: If a batch has no labels, or there is none.
    """
    totals = Totals()
    for index, batch in enumerate(batches):
        with local_rng(seed, "fisher", index):
            _add(totals, structure, model, weights, to_device(batch, model.adapter.device), fisher)
    if totals.num_items == 0:
        raise ValueError("loader yields no batch: give it at least one item.")
    return totals


def _add(
    totals: Totals,
    structure: Structure,
    model: BayesianLora,
    weights: Weights,
    batch: Batch,
    fisher: Literal["exact"] | int,
) -> None:
    """Adds one batch; its graph goes with the record, before the next batch has one."""
    observed = model.likelihood.observed(batch)
    if observed is None:
        raise ValueError("loader yields batches without labels: curvature needs the training data.")
    kept = record(model, weights, batch)
    structure.add_inputs(kept)
    for column in _cotangents(
        model, kept, batch, fisher
    ):  # one at a time: each has the size of the activations
        structure.add_gradients(kept, kept.pull_back(column))
    predictive = model.likelihood.of_scores(kept.scores.detach(), batch)
    totals.log_likelihood += float(predictive.log_prob(observed).double().sum())
    totals.num_items += kept.num_items


def _cotangents(
    model: BayesianLora, kept: Record, batch: Batch, fisher: Literal["exact"] | int
) -> tuple[Tensor, ...]:
    """The columns of a root of the Fisher information of the scores. Shapes `(items, C)`."""
    scores = kept.scores.detach()
    if fisher == "exact":
        return model.likelihood.fisher_root(scores).unbind(-1)
    return tuple(_drawn_score(model, scores, batch) / fisher**0.5 for _ in range(fisher))


def _drawn_score(model: BayesianLora, scores: Tensor, batch: Batch) -> Tensor:
    """The derivative of the log-likelihood of a label drawn from the prediction. Shape `(items, C)`."""
    leaf = scores.clone().requires_grad_()
    with torch.enable_grad():
        predictive = model.likelihood.of_scores(leaf, batch)
        label = predictive.sample().detach()
        return torch.autograd.grad(predictive.log_prob(label).sum(), leaf)[0].nan_to_num()
