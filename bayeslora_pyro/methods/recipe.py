"""What a method builds: a model, a guide, how to fit them, and what to make of the fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.inference import FitResult, fit
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch

__all__ = ["Recipe"]


class Finish(Protocol):
    """Makes the posterior of a method from a fitted one and the loader that it was fitted with."""

    @property
    def about(self) -> str:
        """What it does, in some words."""
        ...

    def __call__(self, fitted: Posterior, loader: Iterable[Batch], /) -> Posterior:
        """Makes the posterior."""
        ...


@dataclass(frozen=True)
class Recipe:
    """A method made ready for one PEFT model.

    Args:
        model: The model.
        guide: The guide.
        config: The settings of the fit.
        num_draws: The number of draws to predict with.
        num_chains: The number of independent fits.
        finish: What comes after the fit; None where the fitted posterior is that of the method.
    """

    model: BayesianLora
    guide: Guide
    config: FitConfig
    num_draws: int = 16
    num_chains: int = 1
    finish: Finish | None = None

    @property
    def num_members(self) -> int:
        """The number of posteriors that predict together: the snapshots of all chains."""
        return self.num_chains * self.config.snapshots

    def fit(self, loader: Iterable[Batch], **options: Any) -> FitResult:
        """Fits the guide; see :func:`bayeslora_pyro.fit`."""
        options = {"num_chains": self.num_chains} | options
        result = fit(self.model, self.guide, loader, self.config, **options)
        if self.finish is None:
            return result
        chains = Ensemble([self.finish(fitted, loader) for fitted in result.chains])
        end = list(result.chains).index(result.posterior)
        return FitResult(chains[end], result.history, chains)
