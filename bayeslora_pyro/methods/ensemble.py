"""Deep ensemble: LoRA fitted several times, each from a start and an order of the data of its own.

| Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017)
| https://arxiv.org/abs/1612.01474
| LoRA ensembles for large language model fine-tuning (Wang et al., 2023)
| https://arxiv.org/abs/2310.00035
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from bayeslora_pyro.methods import lora
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import Likelihood

__all__ = ["build"]


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    num_chains: int = 3,
) -> Recipe:
    """Builds an ensemble of LoRA fits, whose probabilities are averaged.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed; member `k` starts from the seed `+ k`.
        num_chains: The number of members.
    """
    recipe = lora.build(peft_model, likelihood, num_data, seed=seed)
    return replace(recipe, num_chains=num_chains, num_draws=num_chains)
