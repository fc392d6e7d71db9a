"""What a method builds: a model, a guide, and how to fit them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.inference import FitResult, fit
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.types import Batch

__all__ = ["Recipe"]


@dataclass(frozen=True)
class Recipe:
    """A method made ready for one PEFT model.

    Args:
        model: The model.
        guide: The guide.
        config: The settings of the fit.
        num_draws: The number of draws to predict with.
        num_chains: The number of independent fits.
    """

    model: BayesianLora
    guide: Guide
    config: FitConfig
    num_draws: int = 16
    num_chains: int = 1

    def fit(self, loader: Iterable[Batch], **options: Any) -> FitResult:
        """Fits the guide; see :func:`bayeslora_pyro.fit`."""
        options = {"num_chains": self.num_chains} | options
        return fit(self.model, self.guide, loader, self.config, **options)
