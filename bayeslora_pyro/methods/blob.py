"""BLoB: mean and variance of the factors A learned together, the factors B being points.

| BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models (Wang et al., 2024)
| https://arxiv.org/abs/2406.11675
"""

from __future__ import annotations

import math

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import SquaredScaleGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, GaussianPrior, Likelihood, PointPrior

__all__ = ["build", "cycle_length"]

PRIOR_SCALE, INITIAL_ROOT_SCALE, GAMMA = 0.2, 0.05, 8.0
"""The published settings: the scale of the prior, the largest initial G, and the exponent of the length of a cycle."""


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    batch_size: int = 16,
) -> Recipe:
    r"""Builds BLoB, in which A is Gaussian and B a point.

    .. math:: p(A_{ij}) = \mathcal{N}(0, \sigma_p^2), \qquad q(A_{ij}) = \mathcal{N}(M_{ij}, G_{ij}^4)

    Given B, :math:`q` is a low-rank Gaussian over the full weight,

    .. math:: q(\mathrm{vec}\, W) = \mathcal{N}\big(\mathrm{vec}(W_0 + B M),\;
        (B \otimes I)\, \mathrm{diag}(\mathrm{vec}\, G^4)\, (B \otimes I)^\top\big)

    and its divergence from the prior :math:`\mathcal{N}(\mathrm{vec}\, W_0, \sigma_p^2 B B^\top \otimes I)` is that of
    A from its own (Theorem 3.2).

    As published are :math:`\sigma_p = 0.2`, :math:`G` and its start, ten draws to predict with, the step size of
    the encoders (AdamW at 5e-4, linear down to zero), and the weights of the divergence within a cycle of :math:`M`
    mini-batches, :math:`2^i / (2^{M+1} - 2)` (see `kl_cycle`), with the released :math:`M = 100 N^{\pi / 8} / |B|`;
    and flipout, by which the items of a batch see one draw of A with different signs of :math:`A - M`.

    What differs: one optimizer goes down the whole tempered ELBO, where the release takes a step of AdamW for the
    likelihood and then one of SGD for the divergence; its step sizes do not warm up. Flipout draws the signs of
    :math:`A - M` for each item, so that the A that an item sees is one draw from :math:`q`; the release draws them for
    each token.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        batch_size: The number of items in a batch, on which the length of a cycle depends.
    """
    prior = {"A": GaussianPrior(PRIOR_SCALE), "B": PointPrior()}
    model = BayesianLora(peft_model, prior, likelihood, num_data, seed=seed)
    guide = SquaredScaleGuide(model, scale=INITIAL_ROOT_SCALE**2, seed=seed)
    config = FitConfig(
        learning_rate=5e-4,
        head_learning_rate=5e-4,
        schedule="linear",
        kl_warmup=0.0,
        kl_cycle=cycle_length(num_data, batch_size),
        draws_per_batch=1,
        draw_per_item=True,  # by flipout
        seed=seed,
    )
    return Recipe(model, guide, config, num_draws=10)


def cycle_length(num_data: int, batch_size: int) -> int:
    r"""The number of mini-batches of a cycle, :math:`\lfloor 100 N^{\pi / \gamma} / |B| \rfloor`, and at least one.

    Args:
        num_data: The number of training items, :math:`N`.
        batch_size: The number of items in a batch, :math:`|B|`.
    """
    return max(1, int(100 * num_data ** (math.pi / GAMMA) / batch_size))
