"""Laplace-LoRA: a Gaussian posterior for a trained LoRA, from the curvature of the likelihood.

| Bayesian Low-rank Adaptation for Large Language Models (Yang et al., 2024)
| https://arxiv.org/abs/2308.13111
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from bayeslora_pyro.laplace import (
    LaplaceConfig,
    check_likelihood,
    check_tuning,
    laplace_posterior,
    random_pattern,
)
from bayeslora_pyro.methods import lora
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import Likelihood
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch

__all__ = ["Approximate", "build"]

NUM_DRAWS = 1000
"""A draw is one of a few scores, and costs next to nothing; as published are 100,000."""


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    tuning: Iterable[Batch] | None = None,
    **settings: Any,
) -> Recipe:
    """Builds Laplace-LoRA for a LoRA that the recipe fits first.

    Kronecker factors, the exact Fisher information, one precision of the prior by the evidence on the training data,
    and predictions with joint draws of the scores, as published. What differs: tokens share as in KFAC-expand, with
    each sum over the data taken once (the released code counts it once for each token), and a side of up to 1,024
    dimensions is kept whole.

    A LoRA that is trained already needs no fit: :meth:`Recipe.finish_trained`, or
    :func:`bayeslora_pyro.laplace_posterior`.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        tuning: Labelled items that are no training items, for `precision="tuning"`.
        settings: Fields of :class:`bayeslora_pyro.LaplaceConfig`.

    Raises:
        ValueError: If `precision="tuning"` and `tuning` do not come together, or the likelihood has no scores.
    """
    recipe = lora.build(peft_model, likelihood, num_data, seed=seed)
    config = LaplaceConfig(seed=seed, **settings)
    random_pattern(recipe.model.stacks, config.modules)  # better now than after the fit
    check_likelihood(recipe.model.likelihood)
    return replace(recipe, num_draws=NUM_DRAWS, finish=Approximate(config, tuning))


@dataclass(frozen=True)
class Approximate:
    """Makes the Laplace approximation of a fitted posterior.

    Args:
        config: The settings.
        tuning: Labelled items that are no training items, for `precision="tuning"`.
    """

    config: LaplaceConfig
    tuning: Iterable[Batch] | None = None
    about: ClassVar[str] = "the curvature at it, and the precision of the prior"
    post_hoc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_tuning(self.config, self.tuning)  # better now than after the fit

    def __call__(self, fitted: Posterior, loader: Iterable[Batch]) -> Posterior:
        """Goes through the training data once; see :func:`bayeslora_pyro.laplace_posterior`."""
        return laplace_posterior(fitted, loader, self.config, tuning=self.tuning)
