"""LoRA itself: maximum likelihood, the baseline of all the others.

| LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021)
| https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import DeltaGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, Likelihood, PointPrior

__all__ = ["build"]


def build(peft_model: nn.Module, likelihood: Likelihood | str, num_data: int, *, seed: int = 0) -> Recipe:
    """Builds LoRA by the common recipe: AdamW at 1e-3 with weight decay 0.01, and the dropout of the base model.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
    """
    model = BayesianLora(peft_model, PointPrior(), likelihood, num_data, seed=seed)
    config = FitConfig(
        learning_rate=1e-3, head_learning_rate=1e-3, weight_decay=0.01, dropout=True, seed=seed
    )
    return Recipe(model, DeltaGuide(model), config, num_draws=1)
