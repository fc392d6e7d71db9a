"""From plain arrays to ArviZ and its NetCDF file, alike under ArviZ 0.23 and 1.x, and free of torch."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Container",
    "arviz",
    "compare_loo",
    "datasets",
    "from_arrays",
    "is_container",
    "leave_one_out",
    "load_arviz",
    "pareto_khat",
    "pooled",
    "sampled",
    "save_arviz",
]

Container: TypeAlias = Any
"""``arviz.InferenceData`` under ArviZ 0.23, ``xarray.DataTree`` under ArviZ 1.x."""

MIN_DRAWS = 30
"""Pareto smoothing fits the largest fifth of the weights and needs six of them."""

AGREED = 1e-6
"""Draws whose log-likelihoods of an item differ by less agree on it."""


@cache
def arviz() -> Any:
    """Import ArviZ, but not the announcement of its next major version that 0.23 makes once a day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "\nArviZ is undergoing a major refactor", FutureWarning)
        import arviz
    return arviz


def from_arrays(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Sequence[Any]],
    attrs: Mapping[str, Any] | None = None,
) -> Container:
    """Build the container of the installed ArviZ.

    Args:
        groups: The arrays by group and variable. Those of sampled groups start with `(chain, draw)`, those of
            ``observed_data`` and ``constant_data`` do not.
        dims: The names of the dimensions of each variable, without `(chain, draw)`.
        coords: The coordinates of the dimensions that have any.
        attrs: What is known of the whole; anything but text and numbers is stored as JSON.
    """
    data = {group: {name: np.asarray(groups[group][name]) for name in groups[group]} for group in groups}
    options = {
        "dims": {name: list(dims[name]) for name in dims},
        "coords": {name: list(coords[name]) for name in coords},
    }
    attrs = {name: _plain(value) for name, value in (attrs or {}).items()}
    if _is_legacy():
        return arviz().from_dict(**data, **options, attrs=attrs)
    return arviz().from_dict(data, **options, attrs={"/": attrs})


def datasets(container: Container) -> dict[str, xr.Dataset]:
    """Return the groups of a container by name."""
    if isinstance(container, xr.DataTree):
        return {name: node.to_dataset() for name, node in container.children.items()}
    return {name: container[name] for name in container.groups()}


def sampled(container: Container) -> xr.Dataset | None:
    """Return the group that tells chains and draws: the latent sites, or the noise where that is all there is."""
    groups = datasets(container)
    noisy = "alpha" in groups.get("constant_data", xr.Dataset())
    return groups.get("posterior", groups.get("sample_stats") if noisy else None)


def is_container(value: object) -> bool:
    """Tell whether something is a container of either ArviZ."""
    return isinstance(value, xr.DataTree) or callable(getattr(value, "groups", None))


def pooled(values: xr.DataArray, *dims: str) -> NDArray[Any]:
    """Return the draws of all chains together, `(sample, *dims)`."""
    array = np.asarray(values.transpose("chain", "draw", *dims))
    return array.reshape(-1, *array.shape[2:])


def save_arviz(container: Container, path: str | os.PathLike[str]) -> Path:
    """Write a container to a NetCDF file, atomically; ``arviz.from_netcdf`` of either version reads it.

    Args:
        container: What :func:`from_arrays` or :func:`~bayeslora_pyro.diagnostics.to_arviz` returned.
        path: The file, by custom with the suffix ``.nc``. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        xr.Dataset(attrs=container.attrs).to_netcdf(scratch, engine="h5netcdf")
        for name, dataset in datasets(container).items():
            dataset.to_netcdf(scratch, mode="a", group=name, engine="h5netcdf")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def load_arviz(path: str | os.PathLike[str]) -> Container:
    """Read a container into memory and close its file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: no file {os.fspath(path)!r}; save_arviz and report write one")
    if _is_legacy():
        with arviz().rc_context({"data.load": "eager"}):
            return arviz().from_netcdf(os.fspath(path), engine="h5netcdf")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        return tree.load()


def pareto_khat(log_weights: NDArray[np.floating[Any]]) -> float:
    r"""Estimate the tail index :math:`\hat k` of importance weights by Pareto smoothing.

    Args:
        log_weights: The log-weights of independent draws, `(draw,)`.

    Returns:
        The estimate: 0 if all weights are equal, infinity if so few draws dominate that no tail can be
        fitted.

    Raises:
        ValueError: If there are fewer than 30 draws or a weight is NaN.

    References:
        | Pareto Smoothed Importance Sampling (Vehtari et al., 2024)
        | https://arxiv.org/abs/1507.02646
    """
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1 or len(log_weights) < MIN_DRAWS:
        raise ValueError(
            f"log_weights should be a vector of at least {MIN_DRAWS} draws, got shape {log_weights.shape}: "
            "call to_arviz with a larger num_draws"
        )
    if np.isnan(log_weights).any():
        raise ValueError(f"log_weights holds {int(np.isnan(log_weights).sum())} NaN")
    if np.ptp(log_weights) < 1e-8:
        return 0.0
    if _is_legacy():
        khat = arviz().psislw(log_weights)[1]
    else:
        array_stats = importlib.import_module("arviz_stats.base").array_stats
        # It takes log-likelihoods, whose weights for leave-one-out are their inverse.
        khat = array_stats.psislw(-log_weights)[1]
    return float(np.nan_to_num(khat, nan=np.inf, posinf=np.inf))


def leave_one_out(log_likelihood: ArrayLike) -> Any:
    r"""Estimate by Pareto smoothing how well each item is predicted from all others.

    .. math:: \mathrm{elpd}_{\mathrm{loo}} = \sum_n \log p(y_n \mid y_{-n})

    Args:
        log_likelihood: The log-likelihood of each item, `(chain, draw, item)`; the draws are independent.

    Returns:
        ArviZ's ``ELPDData``, with ``pareto_k`` and ``good_k``, the largest value that so many draws can bear.

    Raises:
        ValueError: If there are fewer than 30 draws, all of them are the same, or an entry is not finite.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC (Vehtari et al., 2017)
        | https://arxiv.org/abs/1507.04544
    """
    values = np.asarray(log_likelihood, dtype=np.float64)
    if values.ndim != 3 or values.shape[0] * values.shape[1] < MIN_DRAWS:
        raise ValueError(
            f"log_likelihood should be (chain, draw, item) with at least {MIN_DRAWS} draws, got shape "
            f"{values.shape}: call to_arviz with a larger num_draws"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"log_likelihood holds {int((~np.isfinite(values)).sum())} entries that are not finite"
        )
    agreed = np.ptp(values, axis=(0, 1)) < AGREED
    if agreed.all():
        raise ValueError("log_likelihood is the same in every draw: a point estimate has no leave-one-out")
    # An item on which all draws agree has no tail to fit: give it one that changes nothing.
    ripple = AGREED * np.random.default_rng(0).random(values.shape)
    container = from_arrays(
        {"log_likelihood": {"y": np.where(agreed, values + ripple, values)}}, {"y": ["item"]}, {}
    )
    with _silent():  # who asks gets the values of k, which the warnings are about
        return arviz().loo(container, pointwise=True, reff=1.0)


def compare_loo(estimates: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    r"""Lay the estimates of several models of the same items beside one another.

    Args:
        estimates: By name, what :func:`leave_one_out` returned.

    Returns:
        By name, ``elpd_loo`` with its standard error ``se``, the effective number of parameters ``p_loo``, the
        number ``bad_k`` of items whose Pareto k is above ``good_k``, and beside at least one other model
        ``elpd_diff`` to the best (0 or negative), its standard error ``dse`` and the stacking ``weight``.
    """
    rows = {}
    for name, each in estimates.items():
        elpd, p = (each.elpd_loo, each.p_loo) if _is_legacy() else (each.elpd, each.p)
        bad = int((np.asarray(each.pareto_k) > each.good_k).sum())
        rows[name] = {"elpd_loo": float(elpd), "se": float(each.se), "p_loo": float(p), "bad_k": bad}
    if len(estimates) > 1:
        options = {} if _is_legacy() else {"round_to": "none"}
        with _silent():
            table = arviz().compare(dict(estimates), **options)
        for name, row in table.to_dict("index").items():
            difference = -abs(float(row["elpd_diff"]))  # 0.23 takes the other model from the best
            rows[str(name)] |= {
                "elpd_diff": difference,
                "dse": float(row["dse"]),
                "weight": float(row["weight"]),
            }
    return rows


@contextmanager
def _silent() -> Iterator[None]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def _is_legacy() -> bool:
    return int(arviz().__version__.split(".")[0]) < 1


def _plain(value: Any) -> str | int | float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return value
    return json.dumps(value, default=str)
