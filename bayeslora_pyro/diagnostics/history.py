"""How a fit ended: the last values of the ELBO and its parts, and whether it was still rising."""

from __future__ import annotations

import numpy as np
import xarray as xr

from bayeslora_pyro.diagnostics.arrays import Container, datasets

__all__ = ["end_of_fit", "rise_at_end"]


def end_of_fit(container: Container) -> dict[str, float]:
    """Average the columns of the history over the last tenth of the steps and over chains."""
    history = _history(container)
    if not history.sizes.get("step"):
        return {}
    last = history.isel(step=slice(-max(1, history.sizes["step"] // 10), None))
    means = {str(name): float(np.nanmean(values.values)) for name, values in last.data_vars.items()
             if np.isfinite(values.values).any()}  # fmt: skip
    return means


def rise_at_end(container: Container) -> tuple[float, float, float]:
    r"""Fit a line to the objective, :math:`\mathbb{E} \log p(y \mid W) - \beta\,\mathrm{KL}`, over the last quarter.

    The weight :math:`\beta` is that of the last step throughout, so that a warm-up does not look like a fall.

    Returns:
        The rise of the line over these steps, its standard error, and the mean size of the objective; of the chain
        that rose most beside its standard error. Zeros where there are fewer than 12 such steps.
    """
    history = _history(container)
    if not {"expected_log_likelihood", "kl", "kl_weight"} <= set(history.data_vars):
        return 0.0, 0.0, 0.0
    rises = []
    for chain in range(history.sizes["chain"]):
        rows = history.isel(chain=chain).dropna("step", subset=["kl"])
        if rows.sizes["step"] < 48:
            continue
        weight = float(rows["kl_weight"][-1])
        objective = (rows["expected_log_likelihood"] - weight * rows["kl"]).values
        rises.append(_line(objective[-(len(objective) // 4) :]))
    return max(rises, key=lambda each: each[0] / max(each[1], 1e-12), default=(0.0, 0.0, 0.0))


def _line(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    """The rise of the least-squares line over equally spaced values, its standard error, and their mean size."""
    count = len(values)
    place = np.arange(count) - (count - 1) / 2
    spread = float(np.square(place).sum())
    slope = float((place * values).sum()) / spread
    rest = values - values.mean() - slope * place
    error = float(np.sqrt(np.square(rest).sum() / max(count - 2, 1) / spread))
    return slope * (count - 1), error * (count - 1), float(np.abs(values).mean())


def _history(container: Container) -> xr.Dataset:
    group = datasets(container).get("constant_data", xr.Dataset())
    return group[[name for name in group.data_vars if "step" in group[name].dims]]
