"""What a posterior says of some data, as arrays: of classes, of numbers, of texts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from bayeslora_pyro.diagnostics.protocols import (
    NumbersLike,
    PosteriorLike,
    PredictionLike,
    PriorPredictiveLike,
)
from bayeslora_pyro.metrics import mean_log_probs
from bayeslora_pyro.metrics.predictive import check_labels
from bayeslora_pyro.types import Batch

__all__ = ["Groups", "as_float64", "collect_data", "collect_prior_data"]

Groups: TypeAlias = dict[str, dict[str, NDArray[Any]]]
"""Arrays by group and variable."""


def collect_data(posterior: PosteriorLike, batches: Iterable[Batch], num_draws: int, seed: int) -> Groups:
    """Collect predictions, log-likelihoods and observations; of texts the log-likelihoods alone.

    Args:
        posterior: The posterior.
        batches: The items.
        num_draws: The number of draws.
        seed: The seed of the draws, and of the observations that are sampled from them.

    Returns:
        ``posterior_predictive`` with a sampled ``y`` and the parameters of its distribution (``log_probs``, or
        ``loc`` and ``scale``), and with labels ``log_likelihood`` and ``observed_data``.
    """
    if posterior.is_text:
        return {"log_likelihood": {"y": as_float64(posterior.log_likelihood(batches, num_draws, seed))}}
    prediction = posterior.predict(batches, num_draws, seed)
    rng = np.random.default_rng(seed)
    return _numbers(prediction, rng) if isinstance(prediction, NumbersLike) else _classes(prediction, rng)


def collect_prior_data(
    posterior: PosteriorLike, batches: Iterable[Batch], num_draws: int, seed: int
) -> Groups:
    """Collect what is predicted before any data: ``prior_predictive``, like ``posterior_predictive``.

    Raises:
        ValueError: If the observations are texts, or the posterior cannot predict from its prior.
    """
    if posterior.is_text or not isinstance(posterior, PriorPredictiveLike):
        raise ValueError(
            "prior_predictive=True needs a posterior of classes or numbers with a method predict_prior: leave it out"
        )
    prediction = posterior.predict_prior(batches, num_draws, seed)
    rng = np.random.default_rng([seed, 1])
    groups = _numbers(prediction, rng) if isinstance(prediction, NumbersLike) else _classes(prediction, rng)
    return {"prior_predictive": groups["posterior_predictive"]}


def _classes(prediction: PredictionLike, rng: np.random.Generator) -> Groups:
    mean_log_probs(prediction.log_probs)  # looks at their shape and their sums
    log_probs = as_float64(prediction.log_probs)
    uniform = rng.random(log_probs.shape[:-1])
    sampled = (np.exp(log_probs).cumsum(-1) < uniform[..., None]).sum(-1).clip(max=log_probs.shape[-1] - 1)
    groups: Groups = {"posterior_predictive": {"y": sampled, "log_probs": log_probs.astype(np.float32)}}
    if prediction.labels is not None:
        labels = check_labels(prediction.labels, *log_probs.shape[1:]).numpy()
        scores = np.take_along_axis(log_probs, labels[None, :, None], axis=-1)[..., 0]
        groups |= {"log_likelihood": {"y": scores}, "observed_data": {"y": labels}}
    return groups


def _numbers(prediction: NumbersLike, rng: np.random.Generator) -> Groups:
    loc, scale = as_float64(prediction.loc), as_float64(prediction.scale)
    groups: Groups = {"posterior_predictive": {"y": rng.normal(loc, scale), "loc": loc, "scale": scale}}
    if prediction.labels is not None:
        observed = prediction.labels.detach().to("cpu", torch.float64)
        scores = Normal(torch.from_numpy(loc), torch.from_numpy(scale)).log_prob(observed)
        groups |= {"log_likelihood": {"y": as_float64(scores)}, "observed_data": {"y": as_float64(observed)}}
    return groups


def as_float64(values: Tensor) -> NDArray[Any]:
    """Turn a tensor into an array of double precision."""
    return values.detach().to("cpu", torch.float64).numpy()
