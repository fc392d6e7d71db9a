"""Monte Carlo dropout on the inputs of LoRA, drawn at predictions as in the fit.

The variant is Gal and Ghahramani's own, a distribution over the factors A; see
:class:`~bayeslora_pyro.guides.DropoutGuide`. In the fit each item has a mask of its own, on activations; see
:class:`~bayeslora_pyro.adapters.DropoutOperator`.

| Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning (Gal and Ghahramani, 2016)
| https://arxiv.org/abs/1506.02142
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import DropoutGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, GaussianPrior, Likelihood, PointPrior

__all__ = ["build"]


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    rate: float = 0.1,
) -> Recipe:
    """Builds MC dropout: LoRA's recipe, but the weight decay of A is that of its prior, and the rest has none.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        rate: The share of the inputs of A that are dropped.
    """
    model = BayesianLora(
        peft_model, {"A": GaussianPrior(), "B": PointPrior()}, likelihood, num_data, seed=seed
    )
    config = FitConfig(
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        kl_weight=1.0,
        kl_warmup=0.0,
        draws_per_batch=1,
        draw_per_item=True,
        seed=seed,
    )
    return Recipe(model, DropoutGuide(model, rate=rate, seed=seed), config, num_draws=16)
