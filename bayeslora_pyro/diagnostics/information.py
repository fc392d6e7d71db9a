"""How well items are predicted that were not, or as if they were not, in the data: LOO and WAIC."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.arrays import MIN_DRAWS, Container, datasets

__all__ = ["pointwise", "waic"]


def pointwise(container: Container) -> NDArray[Any] | None:
    """Return the log-likelihood of each item, `(chain, draw, item)`: of the training data where they were passed.

    Nothing is returned where there is none, of fewer than 30 draws, or of a point, whose draws are all the same.
    """
    groups = datasets(container)
    values = groups.get("log_likelihood", xr.Dataset()).get("y")
    values = groups.get("sample_stats", xr.Dataset()).get("fitted_log_likelihood", values)
    if values is None:
        return None
    array = np.asarray(values.values, dtype=np.float64)
    if array.shape[0] * array.shape[1] < MIN_DRAWS or np.ptp(array, axis=(0, 1)).max() < 1e-6:
        return None
    return array


def waic(log_likelihood: NDArray[Any]) -> tuple[float, float]:
    r"""Compute the widely applicable information criterion, in nats of predictive density.

    .. math:: \mathrm{elpd}_{\mathrm{waic}} =
        \sum_n \Big(\log \tfrac1S \sum_s p(y_n \mid W_s) - \mathrm{Var}_s \log p(y_n \mid W_s)\Big)

    Args:
        log_likelihood: The log-likelihood of each item, `(chain, draw, item)`.

    Returns:
        The estimate, and the effective number of parameters, the sum of the variances.

    References:
        | Asymptotic Equivalence of Bayes Cross Validation and Widely Applicable Information Criterion in Singular
          Learning Theory (Watanabe, 2010)
        | https://arxiv.org/abs/1004.2316
    """
    draws = np.asarray(log_likelihood, dtype=np.float64).reshape(-1, log_likelihood.shape[-1])
    density = np.logaddexp.reduce(draws, axis=0) - np.log(len(draws))
    penalty = draws.var(axis=0)
    return float((density - penalty).sum()), float(penalty.sum())
