"""What a method builds: a model, a guide, how to fit them, and what to make of the fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.inference import FitResult, fit
from bayeslora_pyro.models import BayesianLora, Regression
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import RegressionPrediction
from bayeslora_pyro.types import Batch

__all__ = ["Recipe"]


class Finish(Protocol):
    """Makes the posterior of a method from a fitted one and the loader that it was fitted with."""

    about: ClassVar[str]
    """What it does, in some words."""

    post_hoc: ClassVar[bool]
    """Whether any trained LoRA will do."""

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

    def finish_trained(self, loader: Iterable[Batch]) -> FitResult:
        r"""Makes the posterior of the method at the LoRA that the PEFT model has, be it ours or one from elsewhere.

        Nothing is fitted: the history is empty, and there is one chain. The noise of a regression, of which an adapter
        knows nothing, gets its maximum likelihood, :math:`s^2 = \frac1N \sum_n (y_n - \mu(x_n))^2`.

        Args:
            loader: The labelled training items.

        Raises:
            ValueError: If the method makes nothing of a LoRA, or the LoRA does not bear it.
        """
        if self.finish is None or not self.finish.post_hoc:
            raise ValueError("The method is a fit of its own: fit it, or choose one of POST_HOC.")
        trained = Posterior(self.model, self.guide, metadata={"num_data": self.model.num_data})
        _learn_noise(trained, loader)
        posterior = self.finish(trained, loader)
        return FitResult(posterior, [], Ensemble([posterior]))


def _learn_noise(trained: Posterior, loader: Iterable[Batch]) -> None:
    """Gives the likelihood the noise that explains the labelled items best, if it is a number of its own."""
    likelihood = trained.model.likelihood
    if not isinstance(likelihood, Regression) or likelihood.noise != "learned":
        return
    prediction = trained.predict(loader, num_draws=1)
    if not isinstance(prediction, RegressionPrediction) or prediction.labels is None:
        raise ValueError("loader yields batches without labels: give labelled items.")
    squares = (prediction.loc[0] - prediction.labels).square()
    with torch.no_grad():
        likelihood.scale = squares.mean().sqrt().to(likelihood.scale)
