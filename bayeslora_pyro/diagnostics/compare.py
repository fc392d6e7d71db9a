"""Several posteriors beside one another: one table, one figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics.alarms import alarms
from bayeslora_pyro.diagnostics.arrays import Container, compare_loo, datasets, leave_one_out
from bayeslora_pyro.diagnostics.collect import as_container
from bayeslora_pyro.diagnostics.comparison import Comparison, Row
from bayeslora_pyro.diagnostics.history import end_of_fit
from bayeslora_pyro.diagnostics.information import pointwise, waic
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.diagnostics.scored import ScoredNumbers, ScoredSet, ScoredTexts, score
from bayeslora_pyro.diagnostics.summary import has_khat, khat
from bayeslora_pyro.types import Batch

__all__ = ["compare"]


def compare(
    posteriors: Mapping[str, PosteriorLike | Sequence[PosteriorLike] | Container],
    batches: Iterable[Batch] | None = None,
    *,
    fitted_to: Iterable[Batch] | None = None,
    num_draws: int = 32,
    seed: int = 0,
) -> Comparison:
    """Compare fitted posteriors on the same items.

    A row holds what a posterior predicts (``accuracy``, ``nll``, ``ece``, or ``rmse``, ``nll``, ``coverage_90``), how
    its fit ended (``elbo``, untempered, and its parts in nats an item, ``kl_weight``), how good a proposal its guide
    is (``khat``, for the target it was fitted to), its leave-one-out figures (see
    :func:`~bayeslora_pyro.diagnostics.arrays.compare_loo`) with ``elpd_waic`` and ``p_waic``, its
    ``extra_parameters`` beside those of LoRA, and its ``alarms``. What is not known is left out.

    LOO and WAIC ask how well an item *of the data of the fit* would be predicted without it. So they take the training
    data, where ``fitted_to`` was given, to this function or to ``to_arviz``. Else they take the batches for such data,
    which is wrong of items that the fit has not seen: then ``nll`` is the figure to go by.

    Args:
        posteriors: By name, posteriors, sequences of chains, or containers of :func:`~bayeslora_pyro.to_arviz`.
        batches: The items to predict, for those that are no containers.
        fitted_to: The whole training data, for those that are no containers.
        num_draws: The number of draws of each; k-hat, LOO and WAIC need 30.
        seed: The seed of the draws.

    Raises:
        ValueError: If there is nothing to compare, or the items differ.
    """
    if not posteriors:
        raise ValueError("posteriors is empty: give at least one by name, such as {'mean field': posterior}")
    kept = None if batches is None else list(batches)
    training = None if fitted_to is None else list(fitted_to)
    containers = {
        name: as_container(each, kept, fitted_to=training, num_draws=num_draws, seed=seed)
        for name, each in posteriors.items()
    }
    _check_items(containers)
    rows = {name: _row(name, container) for name, container in containers.items()}
    for name, figures in _information(containers).items():
        rows[name] |= figures
    for name, container in containers.items():
        rows[name]["alarms"] = tuple(alarms(container))
    data = {str(container.attrs.get("lp_data", "none")) for container in containers.values()}
    return Comparison(list(rows.values()), fitted=data == {"fitted_to"})


def _check_items(containers: Mapping[str, Container]) -> None:
    first, *others = containers
    expected = _items(containers[first])
    for name in others:
        found = _items(containers[name])
        if found[1] != expected[1] or not np.array_equal(found[0], expected[0]):
            raise ValueError(
                f"posteriors[{name!r}] was given other items than posteriors[{first!r}]: pass the same batches, "
                "unshuffled, and the same fitted_to to each"
            )


def _items(container: Container) -> tuple[NDArray[Any], int]:
    """The labels of the items, and the number of those of the fit; none where there are none."""
    groups = datasets(container)
    labels = groups["observed_data"]["y"].values if "observed_data" in groups else np.zeros(0)
    return np.asarray(labels), groups.get("sample_stats", xr.Dataset()).sizes.get("fitted_item", 0)


def _row(name: str, container: Container) -> Row:
    row: Row = {"name": name, **_scores(container)}
    end = end_of_fit(container)
    parts = [part for part in end if part.startswith("kl_") and part != "kl_weight"]
    for key in ("elbo", "expected_log_likelihood", "kl", *parts):
        if key in end:
            row[key] = end[key]
    if "kl_weight" in container.attrs:
        row["kl_weight"] = float(container.attrs["kl_weight"])
    if has_khat(container):
        row["khat"] = khat(container, kl_weight=row.get("kl_weight", 1.0))
    if "extra_parameters" in container.attrs:
        row["extra_parameters"] = int(container.attrs["extra_parameters"])
    return row


def _scores(container: Container) -> dict[str, float]:
    scored = score(container)
    if isinstance(scored, ScoredSet):
        figures = metrics.evaluate_log_probs(scored.mean, scored.labels)
        return {name: figures[name] for name in ("accuracy", "nll", "ece")}
    if isinstance(scored, ScoredNumbers):
        parts = scored.loc, scored.scale, scored.observed
        return {
            "rmse": metrics.rmse(scored.loc, scored.observed),
            "nll": metrics.gaussian_mixture_nll(*parts),
            "coverage_90": metrics.interval_coverage(*parts, 0.9),
        }
    if isinstance(scored, ScoredTexts):
        return {"nll": -float(scored.predictive.mean())}
    return {}


def _information(containers: Mapping[str, Container]) -> dict[str, Row]:
    values = {name: pointwise(container) for name, container in containers.items()}
    known = {name: each for name, each in values.items() if each is not None}
    rows: dict[str, Row] = {
        name: dict(zip(("elpd_waic", "p_waic"), waic(x), strict=True)) for name, x in known.items()
    }
    for name, figures in compare_loo({name: leave_one_out(each) for name, each in known.items()}).items():
        rows[name] |= figures
    return rows
