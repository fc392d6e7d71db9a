"""Simulation-based calibration: does a way of inference find again what data were simulated from?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_pyro.isolation import local_rng, private_pyro
from bayeslora_pyro.types import Batch

__all__ = ["SbcResult", "sbc"]

Program = Callable[..., Any]
Quantities = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class SbcResult:
    """The ranks of true values among draws from posteriors.

    Args:
        ranks: By quantity, the number of draws below the truth, `(simulation,)`.
        num_draws: The number of draws; ranks reach from 0 to it.
    """

    ranks: Mapping[str, NDArray[np.int64]]
    num_draws: int

    def counts(self, name: str, num_bins: int = 5) -> NDArray[np.int64]:
        """Count the ranks of a quantity in bins of like size.

        Args:
            name: The quantity.
            num_bins: The number of bins, a divisor of `num_draws + 1`.
        """
        if num_bins < 2 or (self.num_draws + 1) % num_bins:
            raise ValueError(
                f"num_bins should be 2 or more and divide num_draws + 1 = {self.num_draws + 1}, got {num_bins}"
            )
        width = (self.num_draws + 1) // num_bins
        return np.bincount(self.ranks[name] // width, minlength=num_bins)

    def chi_square(self, name: str, num_bins: int = 5) -> tuple[float, float]:
        r"""Compare the counts with uniform ones.

        .. math:: X^2 = \sum_b (n_b - n / B)^2 / (n / B)

        Returns:
            The statistic, and the probability of a larger one if ranks are uniform; small where inference is wrong.
        """
        counts = self.counts(name, num_bins)
        expected = counts.sum() / num_bins
        value = float(np.square(counts - expected).sum() / expected)
        half = torch.tensor([(num_bins - 1) / 2, value / 2], dtype=torch.float64)
        return value, float(torch.special.gammaincc(half[0], half[1]))


def sbc(
    make_model: Callable[[], Program],
    make_guide: Callable[[Any], Program],
    batch: Batch,
    *,
    fit: Callable[[Any, Any, Batch], object],
    num_simulations: int = 50,
    num_draws: int = 19,
    seed: int = 0,
    quantities: Quantities | None = None,
) -> SbcResult:
    r"""Simulate data from the prior, infer, and rank the truth among draws from the posterior.

    .. math:: \theta \sim p(\theta), \; y \sim p(y \mid \theta), \; \theta_1, \dots, \theta_S \sim q(\theta \mid y)

    If :math:`q` is the exact posterior, the rank of (any function of) :math:`\theta` is uniform on 0 … S. Ranks heap at
    both ends where posteriors are too narrow, in the middle where they are too wide.

    Args:
        make_model: Makes a Pyro model of a batch, anew for each simulation, whose prior is the same each time. Without
            `labels` in its batch it draws the site `y`; with them it observes it.
        make_guide: Makes a guide of a model.
        batch: The inputs of the items; its labels are left aside.
        fit: Fits a guide to a model and a batch with simulated labels, in place. Keep it small: it runs
            `num_simulations` times.
        num_simulations: The number of simulations.
        num_draws: The number S of draws from each posterior.
        seed: The seed of simulations, fits and draws.
        quantities: From the values of the latent sites by name to the numbers that are ranked; by default the mean of
            each site.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
    """
    for name, value in {"num_simulations": num_simulations, "num_draws": num_draws}.items():
        if value < 1:
            raise ValueError(f"{name} should be at least 1, got {value}")
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    of = quantities or _means
    rows = []
    with private_pyro():
        for index in range(num_simulations):
            with local_rng(seed, "simulation", index):
                model = make_model()
                with torch.no_grad():
                    truth = _sites(poutine.trace(model).get_trace(inputs))
                simulated = {**inputs, "labels": truth.pop("y")}
                guide = make_guide(model)
                fit(model, guide, simulated)
                with torch.no_grad():
                    draws = [of(_sites(poutine.trace(guide).get_trace(simulated))) for _ in range(num_draws)]
                    true = of(truth)
            rows.append(
                {name: sum(int(draw[name] < value) for draw in draws) for name, value in true.items()}
            )
    return SbcResult({name: np.array([row[name] for row in rows]) for name in rows[0]}, num_draws)


def _sites(trace: Any) -> dict[str, Tensor]:
    """The values of the random sites, without plates."""
    return {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }


def _means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double().mean() for name, value in values.items()}
