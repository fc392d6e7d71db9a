"""A regression in the units of its targets, which a fit standardises."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, final

from torch import Tensor

from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.types import Batch

__all__ = ["TargetPosterior"]


@final
class TargetPosterior(Posterior):
    """The posterior of a regression on standardised targets, whose predictions are in the units of the targets."""

    def predict(
        self, batches: Iterable[Batch], num_draws: int = 16, seed: int = 0, **options: Any
    ) -> Prediction | RegressionPrediction:
        """Predicts each item with each draw; see :meth:`Posterior.predict`."""
        prediction = super().predict(batches, num_draws, seed, **options)
        if isinstance(prediction, RegressionPrediction):
            return prediction.in_units(self.metadata["target_mean"], self._deviation)
        return prediction

    def log_likelihood(
        self, batches: Iterable[Batch], num_draws: int = 16, seed: int = 0, **options: Any
    ) -> Tensor:
        """The log-density of each target in its own units; see :meth:`Posterior.log_likelihood`."""
        return super().log_likelihood(batches, num_draws, seed, **options) - math.log(self._deviation)

    @property
    def _deviation(self) -> float:
        return float(self.metadata["target_deviation"])
