"""Bayesian-LoRA: a sparse-GP prior over each factor, and a normalizing flow over its inducing matrix.

| Bayesian-LoRA: Probabilistic Low-Rank Adaptation of Large Language Models (Lin et al., 2026)
| https://arxiv.org/abs/2601.21003
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import FlowGuide, Guide
from bayeslora_pyro.guides.flow import BASES
from bayeslora_pyro.loading import first_batches
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, InducingPrior, Likelihood
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.predicting import why_not_centred
from bayeslora_pyro.types import Batch, TransformFactory

__all__ = ["Centre", "build"]


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    transform: str | TransformFactory | None = "affine_autoregressive",
    family: str = "mean_field",
    centred: bool = True,
) -> Recipe:
    """Builds Bayesian-LoRA.

    What differs from the paper: predictions are centred on the mean adapter, unless `centred` is False.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        transform: The flow over the rows of the inducing matrices; None for the base family alone.
        family: The base family, a name in `BASES`.
        centred: Whether draws are centred on the mean adapter after the fit, where they can be, which is for classes
            and choices; see :meth:`bayeslora_pyro.Posterior.centred`.
    """
    model = BayesianLora(peft_model, InducingPrior(), likelihood, num_data, seed=seed)
    guide: Guide = (
        BASES[family](model, seed=seed)
        if transform is None
        else FlowGuide(model, transform=transform, base=family, seed=seed)
    )
    finish = Centre(seed) if centred and why_not_centred(model, guide) is None else None
    return Recipe(model, guide, FitConfig(seed=seed), num_draws=8, finish=finish)


@dataclass(frozen=True)
class Centre:
    """Centres the draws of a fitted posterior, by the inputs of some training items.

    Args:
        seed: The seed of the items and the draws.
        num_items: About how many items to take. With 128 the temperature of a fit to 400 sentences varies by 3 %.
        num_draws: The number of draws.
    """

    seed: int = 0
    num_items: int = 128
    num_draws: int = 8
    about: ClassVar[str] = "the temperature of its mean by inputs alone"
    post_hoc: ClassVar[bool] = False

    def __call__(self, fitted: Posterior, loader: Iterable[Batch]) -> Posterior:
        """Goes through the items once; see :meth:`bayeslora_pyro.Posterior.centred`."""
        return fitted.centred(first_batches(loader, self.seed, self.num_items), self.num_draws, self.seed)
