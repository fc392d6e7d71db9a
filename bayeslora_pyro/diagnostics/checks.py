"""Prior and posterior predictive checks: do data drawn from the model look like the data?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.arrays import Container, datasets, pooled
from bayeslora_pyro.diagnostics.comparison import PALETTE

__all__ = ["PredictiveCheck", "draw_check", "predictive_check"]

GROUPS = {"prior": "prior_predictive", "posterior": "posterior_predictive"}


@dataclass(frozen=True)
class PredictiveCheck:
    """Statistics of data drawn from a model beside those of the data.

    Args:
        names: What they are.
        drawn: Their values for each draw, `(draw, statistic)`, under ``prior`` and ``posterior``, as far as known.
        observed: Their values for the data, `(statistic,)`.
    """

    names: tuple[str, ...]
    drawn: Mapping[str, NDArray[Any]]
    observed: NDArray[Any]

    def tails(self, group: str = "posterior") -> dict[str, float]:
        r"""Return for each statistic the two-sided share of draws as far out as the data, ties counted half.

        .. math:: 2 \min(P, 1 - P), \qquad P = \Pr(T(y_\text{drawn}) < T(y)) + \tfrac12 \Pr(T(y_\text{drawn}) = T(y))
        """
        drawn = self.drawn[group]
        below = (drawn < self.observed).mean(0) + 0.5 * (drawn == self.observed).mean(0)
        return dict(zip(self.names, np.minimum(1.0, 2 * np.minimum(below, 1 - below)).tolist(), strict=True))

    def figure(self) -> Figure:
        """Draw nine tenths of the draws of each statistic, under prior and posterior, and the data."""
        with mpl.rc_context({"font.size": 9}):
            figure = Figure(figsize=(6, 1 + 0.4 * len(self.names)), layout="constrained")
            draw_check(figure, self, PALETTE)
        return figure


def predictive_check(container: Container) -> PredictiveCheck:
    """Compute what data drawn from prior and posterior look like, beside the data themselves.

    Of classes: the frequency of each, and ``confidence``, the mean confidence of a draw, beside the accuracy of the
    predictive distribution. Of numbers: their ``mean``, ``sd``, ``min`` and ``max``.

    Args:
        container: What :func:`~bayeslora_pyro.to_arviz` returned with labels; with ``prior_predictive=True`` there is
            a prior to check.

    Raises:
        ValueError: If the container has no predictions, or no data to check them against.
    """
    groups = datasets(container)
    if "posterior_predictive" not in groups or "observed_data" not in groups:
        raise ValueError(
            f"container should have the groups posterior_predictive and observed_data, got {sorted(groups)}: give "
            "batches with labels to to_arviz"
        )
    known = {name: groups[group] for name, group in GROUPS.items() if group in groups}
    observed = np.asarray(groups["observed_data"]["y"].values)
    if "log_probs" in groups["posterior_predictive"]:
        return _classes(known, observed)
    names = ("mean", "sd", "min", "max")
    return PredictiveCheck(
        names,
        {n: _moments(pooled(each["y"], "item")) for n, each in known.items()},
        _moments(observed[None])[0],
    )


def _classes(known: Mapping[str, xr.Dataset], observed: NDArray[Any]) -> PredictiveCheck:
    labels = known["posterior"]["label"].values
    drawn = {}
    for name, each in known.items():
        counts = _frequencies(pooled(each["y"], "item"), len(labels))
        confidence = np.exp(pooled(each["log_probs"], "item", "label")).max(-1).mean(-1)
        drawn[name] = np.column_stack([counts, confidence])
    mean = np.exp(pooled(known["posterior"]["log_probs"], "item", "label")).mean(0)
    accuracy = float((mean.argmax(-1) == observed).mean())
    data = np.append(_frequencies(observed[None], len(labels))[0], accuracy)
    return PredictiveCheck((*(str(label) for label in labels), "confidence"), drawn, data)


def _frequencies(values: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """The share of each class, `(draw, class)`."""
    return np.stack([(values == label).mean(-1) for label in range(num_classes)], axis=-1)


def _moments(values: NDArray[Any]) -> NDArray[Any]:
    return np.stack([values.mean(-1), values.std(-1), values.min(-1), values.max(-1)], axis=-1)


def draw_check(figure: Figure, check: PredictiveCheck, colours: Mapping[str, str]) -> None:
    """Fill a figure with a predictive check.

    Args:
        figure: The figure.
        check: The check.
        colours: The colours by name.
    """
    axes = figure.subplots()
    places = np.arange(len(check.names))
    for name, colour, width in (("prior", "line", 9.0), ("posterior", "blue", 3.0)):
        if name in check.drawn:
            low, high = np.quantile(check.drawn[name], (0.05, 0.95), axis=0)
            axes.hlines(places, low, high, color=colours[colour], linewidth=width, label=name)
    axes.plot(check.observed, places, "o", color=colours["orange"], markersize=6, label="data")
    axes.set_yticks(places, check.names)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
