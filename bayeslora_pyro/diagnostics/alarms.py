"""Findings that should stop a reader: what is wrong with a fit, by name, with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.arrays import Container, datasets
from bayeslora_pyro.diagnostics.collect import as_container
from bayeslora_pyro.diagnostics.history import end_of_fit, rise_at_end
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.diagnostics.summary import has_khat, khat
from bayeslora_pyro.types import Batch

__all__ = ["ALARMS", "Alarm", "alarms"]

LEAST_KL = 1.0
"""Nats by which a factor's latent site should differ from its prior."""

LEAST_CHANGE = 1e-3
"""The norm of a mean update beside that of the weight it is added to."""

NOISE_BOUNDS = (1e-3, 0.99)
"""Between which the conditional noise scale, a number in (0, 1), is free."""

MOST_KL = 10.0
"""How many times the expected log-likelihood a weighted part of the KL may be, where it is above a nat an item."""

MOST_KHAT = 0.7
"""Where importance weights can no longer be smoothed."""

LEAST_RISE = 0.01
"""The rise of the objective over the last quarter of the steps, beside its size."""


@dataclass(frozen=True)
class Alarm:
    """A finding.

    Args:
        name: Its name, a key of ``ALARMS``.
        message: What was found, with what it was compared with and what to try.
        numbers: The numbers behind it.
    """

    name: str
    message: str
    numbers: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def alarms(
    posterior: PosteriorLike | Sequence[PosteriorLike] | Container,
    batches: Iterable[Batch] | None = None,
    *,
    fitted_to: Iterable[Batch] | None = None,
    num_draws: int = 32,
    seed: int = 0,
) -> list[Alarm]:
    """Look for what is known to go wrong.

    ``posterior collapsed`` (most factors are within a nat of their prior), ``adapter a no-op`` (most mean updates
    are less than a thousandth of the weights they are added to), ``noise scale at its bound`` (of most factors),
    ``KL swamps the likelihood`` (a weighted part is ten times the expected log-likelihood and above a nat),
    ``k-hat above 0.7`` (given the training data), ``ELBO still rising`` (over the last quarter of the steps). What the
    posterior or the container does not hold raises no alarm.

    Args:
        posterior: The posterior, several chains of it, or what :func:`~bayeslora_pyro.to_arviz` returned.
        batches: See :func:`~bayeslora_pyro.to_arviz`, which makes a container of a posterior.
        fitted_to: The whole training data; without it k-hat is not judged.
        num_draws: The number of draws.
        seed: The seed of the draws.
    """
    container = as_container(posterior, batches, fitted_to=fitted_to, num_draws=num_draws, seed=seed)
    found = (check(container) for check in ALARMS.values())
    return [alarm for alarm in found if alarm is not None]


def _collapsed(container: Container) -> Alarm | None:
    values = _left(container, "factor_kl")
    low = values < LEAST_KL
    if not _most(low):
        return None
    return Alarm(
        "posterior collapsed",
        f"{int(low.sum())} of {len(low)} factors are within {LEAST_KL:g} nat of their prior (median KL "
        f"{np.median(values):.2g}): lower kl_weight, or start with less noise",
        {"share": float(low.mean()), "median_kl": float(np.median(values)), "threshold": LEAST_KL},
    )


def _no_op(container: Container) -> Alarm | None:
    values = _left(container, "mean_update_change")
    low = values < LEAST_CHANGE
    if not _most(low):
        return None
    return Alarm(
        "adapter a no-op",
        f"{int(low.sum())} of {len(low)} mean updates are less than {LEAST_CHANGE:g} of the weights they are added "
        f"to (median {np.median(values):.2g}): predictions are those of the base model; lower kl_weight, or take "
        "larger steps",
        {"share": float(low.mean()), "median_change": float(np.median(values)), "threshold": LEAST_CHANGE},
    )


def _noise_scale(container: Container) -> Alarm | None:
    values, (low, high) = _left(container, "noise_scale"), NOISE_BOUNDS
    stuck = (values < low) | (values > high)
    if not _most(stuck):
        return None
    median = float(np.median(values))
    side = (
        "1, where W | V keeps all the noise of the prior" if median > 0.5 else "0, where W | V has no noise"
    )
    return Alarm(
        "noise scale at its bound",
        f"λ of {int(stuck.sum())} of {len(stuck)} factors lies outside {low:g} to {high:g} (median {median:.3g}), near "
        f"{side}",
        {"share": float(stuck.mean()), "median": median, "low": low, "high": high},
    )


def _swamped(container: Container) -> Alarm | None:
    end = end_of_fit(container)
    fit, weight = abs(end.get("expected_log_likelihood", math.nan)), end.get("kl_weight", 1.0)
    # What items have for themselves is no sign: the divergence of relative noise is large where it is least.
    apart = ("kl_weight", "kl_alpha")
    parts = {name: weight * end[name] for name in end if name.startswith("kl_") and name not in apart}
    if not parts:
        return None
    worst = max(parts, key=lambda name: parts[name])
    if not parts[worst] > max(MOST_KL * fit, 1.0):
        return None
    return Alarm(
        "KL swamps the likelihood",
        f"{worst}, weighted by {weight:g}, is {parts[worst]:.3g} nats an item and the expected log-likelihood "
        f"{-fit:.3g}: the fit is about the prior; lower kl_weight, or take more data or fewer inducing variables",
        {"part": parts[worst], "expected_log_likelihood": -fit, "threshold": MOST_KL},
    )


def _khat(container: Container) -> Alarm | None:
    if container.attrs.get("lp_data") != "fitted_to" or not has_khat(container):
        return None
    weight = float(container.attrs.get("kl_weight", 1))
    value = khat(container, kl_weight=weight)
    if not value > MOST_KHAT:
        return None
    return Alarm(
        "k-hat above 0.7",
        f"k-hat is {value:.2g} at the KL weight {weight:g}: reweighting the draws cannot mend the guide, so LOO "
        "and any importance weight are unreliable; the rule with very many weights",
        {"khat": value, "kl_weight": weight, "threshold": MOST_KHAT},
    )


def _rising(container: Container) -> Alarm | None:
    rise, error, size = rise_at_end(container)
    if not (rise > 3 * error and rise > LEAST_RISE * size):
        return None
    return Alarm(
        "ELBO still rising",
        f"over the last quarter of the steps the objective rose by {rise:.3g} ± {error:.2g} nats an item, to a size "
        f"of {size:.3g}: take more steps",
        {"rise": rise, "standard_error": error, "size": size, "threshold": LEAST_RISE},
    )


ALARMS: dict[str, Callable[[Container], Alarm | None]] = {
    "posterior collapsed": _collapsed,
    "adapter a no-op": _no_op,
    "noise scale at its bound": _noise_scale,
    "KL swamps the likelihood": _swamped,
    "k-hat above 0.7": _khat,
    "ELBO still rising": _rising,
}
"""The alarms by name: each looks at a container."""


def _left(container: Container, name: str) -> NDArray[Any]:
    """What a fit left behind, of all chains together, without what is not known."""
    group = datasets(container).get("constant_data", xr.Dataset())
    values = np.asarray(group[name].values, dtype=np.float64).ravel() if name in group else np.zeros(0)
    return values[~np.isnan(values)]


def _most(found: NDArray[Any]) -> bool:
    return len(found) > 0 and float(found.mean()) > 0.5
