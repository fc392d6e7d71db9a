"""MAP: the most probable LoRA under a Gaussian prior, which is LoRA with weight decay in the loss.

| Keeping Neural Networks Simple by Minimizing the Description Length of the Weights (Hinton and van Camp, 1993)
| https://www.cs.toronto.edu/~hinton/absps/colt93.pdf
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import DeltaGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, GaussianPrior, Likelihood

__all__ = ["build"]


def build(
    peft_model: nn.Module, likelihood: Likelihood | str, num_data: int, *, seed: int = 0, scale: float = 1.0
) -> Recipe:
    r"""Builds MAP by the recipe of plain LoRA, with an untempered prior in the place of weight decay.

    .. math:: -\log p(y \mid W) + \|W\|^2 / 2 \sigma^2

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        scale: The standard deviation :math:`\sigma` of the prior.
    """
    model = BayesianLora(peft_model, GaussianPrior(scale), likelihood, num_data, seed=seed)
    config = FitConfig(
        learning_rate=1e-3, head_learning_rate=1e-3, kl_weight=1.0, kl_warmup=0.0, dropout=True, seed=seed
    )
    return Recipe(model, DeltaGuide(model, seed=seed), config, num_draws=1)
