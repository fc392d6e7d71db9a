"""The posterior in a few numbers: what the data taught each site, and how good a proposal the guide is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import xarray as xr

from bayeslora_pyro.diagnostics.arrays import MIN_DRAWS, Container, arviz, datasets, pareto_khat

__all__ = ["has_khat", "khat", "summary"]


def summary(container: Container) -> pd.DataFrame:
    """Summarise each variable of the posterior over its elements, fast enough for millions of weights.

    Args:
        container: What :func:`~bayeslora_pyro.diagnostics.to_arviz` returned.

    Returns:
        A table with a row for each variable: the number of ``elements``; the root mean square over them of
        the posterior mean, ``mean`` (cleared of the noise of finitely many draws), and of the standard
        deviations ``sd`` and ``prior_sd``; their ratio ``sd_ratio``, 1 where the data taught nothing; and
        ``r_hat``, the worst over elements, between chains, where there are several and the sites can be
        compared.
    """
    groups = datasets(container)
    if "posterior" not in groups:
        raise ValueError(f"container should have a group posterior, got {sorted(groups)}: use to_arviz")
    prior = groups.get("prior", xr.Dataset())
    rows = {}
    for name, values in groups["posterior"].data_vars.items():
        mean, sd = _mean_and_sd(values)
        prior_sd = _mean_and_sd(prior[name])[1] if name in prior else np.nan
        rows[name] = {
            "elements": values[0, 0].size,
            "mean": mean,
            "sd": sd,
            "prior_sd": prior_sd,
            "sd_ratio": sd / prior_sd if prior_sd > 0 else np.nan,
            # Factors of different fits differ by rotations that leave their product alone.
            "r_hat": _r_hat(values) if name == "update_norm" else np.nan,
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.astype({"elements": int}) if len(table) else table


def has_khat(container: Container) -> bool:
    """Tell whether a container has what :func:`khat` takes: a joint density, one of the guide, and enough draws."""
    groups = datasets(container)
    stats = groups.get("sample_stats", xr.Dataset())
    return bool(
        "lp" in stats
        and stats.sizes["draw"] >= MIN_DRAWS
        and not stats["log_guide"].isnull().any()
        and ("posterior" in groups or stats["log_guide"].any())  # without latent sites there are no weights
    )


def khat(container: Container, *, kl_weight: float = 1.0) -> float:
    r"""Estimate how heavy the tail of the importance weights of the guide is, the worst over the chains.

    .. math:: \log w_s = \log p(W_s) + \log p(y \mid W_s) / \beta - \log q(W_s)

    Below 0.5 the guide is a good importance proposal, below 0.7 a usable one; above, reweighting its draws
    cannot mend it. The data are those of ``lp``: pass ``fitted_to`` to ``to_arviz`` for the posterior of the
    fit.

    Args:
        container: What :func:`~bayeslora_pyro.diagnostics.to_arviz` returned, with labels and 30 draws or
            more.
        kl_weight: The weight :math:`\beta` of the KL in the ELBO, whose target a tempered guide approximates.

    Returns:
        The estimate, infinity where a few draws outweigh all others.
    """
    stats = datasets(container).get("sample_stats", xr.Dataset())
    if "lp" not in stats:
        raise ValueError(
            "container has no log joint density: pass batches with labels, or fitted_to, to to_arviz"
        )
    if stats["log_guide"].isnull().any():
        raise ValueError(
            "the guide has no density, as it is a point or drops inputs at random: its draws cannot be reweighted, and "
            "there is no k-hat"
        )
    if not kl_weight > 0:
        raise ValueError(f"kl_weight should be positive, got {kl_weight}")
    log_weights = stats["log_prior"] + stats["log_likelihood_sum"] / kl_weight - stats["log_guide"]
    return max(pareto_khat(chain) for chain in log_weights.transpose("chain", "draw").values)


def _mean_and_sd(values: xr.DataArray) -> tuple[float, float]:
    draws = np.asarray(values.transpose("chain", "draw", ...), dtype=np.float64)
    num_draws = draws.shape[1]
    if num_draws < 2:
        return float(np.sqrt(np.square(draws).mean())), float("nan")
    variance = float(draws.var(axis=1, ddof=1).mean())
    square = float(np.square(draws.mean(axis=1)).mean()) - variance / num_draws
    return float(np.sqrt(max(square, 0.0))), float(np.sqrt(variance))


def _r_hat(values: xr.DataArray) -> Any:
    if values.sizes["chain"] < 2 or values.sizes["draw"] < 4:
        return np.nan
    return float(arviz().rhat(values.to_dataset(name="x"))["x"].max())
