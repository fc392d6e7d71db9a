"""Bayesian-LoRA: a sparse-GP prior over each factor, and a normalizing flow over its inducing matrix.

| Bayesian-LoRA: Probabilistic Low-Rank Adaptation of Large Language Models (Lin et al., 2026)
| https://arxiv.org/abs/2601.21003
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import FlowGuide, Guide
from bayeslora_pyro.guides.flow import BASES
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, InducingPrior, Likelihood
from bayeslora_pyro.types import TransformFactory

__all__ = ["build"]


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    transform: str | TransformFactory | None = "affine_autoregressive",
    family: str = "mean_field",
) -> Recipe:
    """Builds Bayesian-LoRA.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        transform: The flow over the rows of the inducing matrices; None for the base family alone.
        family: The base family, a name in `BASES`.
    """
    model = BayesianLora(peft_model, InducingPrior(), likelihood, num_data, seed=seed)
    guide: Guide = (
        BASES[family](model, seed=seed)
        if transform is None
        else FlowGuide(model, transform=transform, base=family, seed=seed)
    )
    return Recipe(model, guide, FitConfig(seed=seed), num_draws=8)
