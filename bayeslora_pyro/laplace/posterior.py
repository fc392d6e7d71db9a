"""A Laplace approximation of the posterior of a trained LoRA."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from bayeslora_pyro.laplace.approximation import Approximation
from bayeslora_pyro.laplace.config import LaplaceConfig
from bayeslora_pyro.laplace.tuning import best_precision_on
from bayeslora_pyro.loading import first_batches
from bayeslora_pyro.models import BayesianLora, Likelihood
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch

__all__ = ["check_likelihood", "check_tuning", "laplace_posterior"]


def laplace_posterior(
    fitted: Posterior | BayesianLora,
    loader: Iterable[Batch],
    config: LaplaceConfig | None = None,
    *,
    tuning: Iterable[Batch] | None = None,
    **settings: Any,
) -> Posterior:
    r"""Gives a trained LoRA a Gaussian posterior, from the curvature of the likelihood at its factors.

    .. math::
        q(\theta) = \mathcal{N}\big(\theta_{\mathrm{MAP}}, P^{-1}\big), \qquad
        P = \sum_n J_n^\top H_n J_n + \lambda I, \qquad J_n = \frac{\partial f(x_n)}{\partial \theta}

    with a block for each factor, of a Kronecker product or of a diagonal. One pass over the data records what goes into
    the factors and the gradients of what comes out of them; the base model may be frozen, quantised or of half
    precision. Its head stays a point. The prior of the result is :math:`\mathcal{N}(0, \lambda^{-1})`; the result
    predicts through the model linearised at the MAP.

    Args:
        fitted: The trained LoRA: a fitted posterior, of which only the mean is used, or a model whose PEFT model has
            it.
        loader: The whole training data, labelled, in any order. Should it hold fewer or more items than `num_data` of
            the model, the curvature is scaled to these.
        config: The settings.
        tuning: Labelled items that are no training items, for `precision="tuning"`.
        settings: Single settings, which win.

    Raises:
        ValueError: If the settings do not fit together, the likelihood has no scores, or the LoRA is not trained and
            the evidence has no maximum.

    References:
        | Bayesian Low-rank Adaptation for Large Language Models (Yang et al., 2024), Section 3
        | https://arxiv.org/abs/2308.13111
    """
    config = replace(config or LaplaceConfig(), **settings)
    check_tuning(config, tuning)
    start = fitted if isinstance(fitted, Posterior) else None
    model = fitted if isinstance(fitted, BayesianLora) else fitted.model
    check_likelihood(model.likelihood)
    lora = model.adapter.lora_weights() if start is None else start.mean_adapter()
    found = Approximation(model, lora, first_batches(loader, config.seed, sys.maxsize), config)
    if config.precision == "evidence":
        precision = found.evidence.best_precision(torch.tensor(found.groups()))
    else:
        number = 1.0 if tuning is not None else float(config.precision)
        precision = torch.full((len(found.factors),), number, dtype=torch.float64)
    if tuning is not None:
        best = best_precision_on(found.posterior(precision), list(tuning), config.seed)
        precision = torch.full_like(precision, best)
    posterior = found.posterior(precision)
    posterior.history = [] if start is None else start.history
    posterior.metadata = ({} if start is None else start.metadata) | {"laplace": found.facts(precision)}
    return posterior


def check_tuning(config: LaplaceConfig, tuning: Iterable[Batch] | None) -> None:
    """Complains of tuning items without use, and of a precision that has none to be chosen by."""
    if (config.precision == "tuning") != (tuning is not None):
        raise ValueError("precision='tuning' and tuning=… belong together: give both, or neither.")


def check_likelihood(likelihood: Likelihood) -> None:
    """Complains of a likelihood without scores, such as that of texts."""
    if not likelihood.has_scores:
        raise ValueError(
            f"likelihood={type(likelihood).__name__} has no scores to linearise: Laplace-LoRA takes Classification, "
            "Choice or Regression; for texts choose another method, such as bayesian-lora."
        )
