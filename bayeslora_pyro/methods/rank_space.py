"""Inference in the space of ranks, in the manner of ScalaBL: a random scale for each rank, all else parameters.

| Scalable Bayesian Low-Rank Adaptation of Large Language Models via Stochastic Variational Subspace Inference
  (Samplawski et al., 2025)
| https://arxiv.org/abs/2506.21408
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, Likelihood, PointPrior, RankSpacePrior

__all__ = ["build"]


def build(peft_model: nn.Module, likelihood: Likelihood | str, num_data: int, *, seed: int = 0) -> Recipe:
    r"""Builds the update :math:`B\, \mathrm{diag}(s) A_0`, with :math:`s` random and :math:`A_0, B` parameters.

    .. math:: p(s) = \mathcal{N}(0, I_r), \qquad q(s) = \mathcal{N}(\mu, \mathrm{diag}(\sigma^2)), \qquad
        \mathrm{KL}(q \,\|\, p) = \tfrac12 \sum_k \big(\sigma_k^2 + \mu_k^2 - 1 - \log \sigma_k^2\big)

    There are `2 r` variational parameters for each adapter, so few that the ELBO is not tempered.

    Prior, family, :math:`\log \sigma` as the parameter and its start at 0.05 are those that ScalaBL's authors released.
    What differs, and why it has not the name: their code minimises :math:`\mathrm{KL}(p \,\|\, q)`, and this the
    divergence of the ELBO. Their :math:`\mu` is positive, the exponential of a parameter; here its sign is free. They
    start at singular values and right singular vectors of a fresh A, this at the lengths and directions of the rows of
    the A there is, which keeps a trained LoRA. They alternate AdamW for the likelihood and SGD for the divergence, this
    has one optimizer.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
    """
    prior = {"A": RankSpacePrior(), "B": PointPrior()}
    model = BayesianLora(peft_model, prior, likelihood, num_data, seed=seed)
    config = FitConfig(learning_rate=1e-3, head_learning_rate=1e-3, kl_weight=1.0, seed=seed)
    return Recipe(model, MeanFieldGuide(model, scale=0.05, seed=seed), config, num_draws=10)
