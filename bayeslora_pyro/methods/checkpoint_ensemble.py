"""Checkpoint ensemble: one LoRA fit, whose parameters at several points of its second half are the members.

It costs no more to fit than LoRA. The members lie on one path, so they differ less than independent fits.

| Checkpoint Ensembles: Ensemble Methods from a Single Training Process (Chen et al., 2017)
| https://arxiv.org/abs/1710.03282
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
    snapshots: int = 5,
) -> Recipe:
    """Builds an ensemble of points of one LoRA fit, whose probabilities are averaged.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        snapshots: The number of members.
    """
    recipe = lora.build(peft_model, likelihood, num_data, seed=seed)
    return replace(recipe, config=recipe.config.replace(snapshots=snapshots), num_draws=snapshots)
