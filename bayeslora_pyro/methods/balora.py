"""BaLoRA: points for all factors, and on those of A noise whose size depends on the input.

This is Bayesian Low-Rank Adaptation, and no relative of Balanced LoRA (arXiv 2605.31484), which has the name too.

| BaLoRA: Bayesian Low-Rank Adaptation of Large Scale Models (Coscia et al., 2026)
| https://arxiv.org/abs/2605.08110
"""

from __future__ import annotations

from torch import nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import AmortisedNoiseGuide
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.models import BayesianLora, Likelihood, PointPrior, RelativeNoisePrior

__all__ = ["build"]

RATE = 0.1
"""The rate of the dropout that the prior is like; none is known to be published."""


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    prior: RelativeNoisePrior | None = None,
) -> Recipe:
    r"""Builds BaLoRA, in which A is Gaussian given the input, and B a point.

    .. math:: q(A_{ij} \mid x) = \mathcal{N}(M_{ij}, \alpha_l(x) M_{ij}^2), \qquad
        p(A_{ij}) = \mathcal{N}\big(0, \tfrac{p}{1 - p} M_{ij}^2\big), \qquad
        \mathcal{L} = \sum_n \Big[\mathbb{E}_q \log p(y_n \mid x_n) - \beta \sum_l \mathrm{KL}_l(x_n)\Big]

    A network of two hidden layers of 256 units reads :math:`\alpha(x)`, one for each layer, off features of the frozen
    base model. Without its noise the adapter is LoRA itself: that is what is saved for PEFT, and can be merged.

    Posterior, prior, the network and the sampling in the space of ranks are the paper's as far as it was to be had. It
    does not settle, and here is: the divergence, the mean over the entries of a factor, with :math:`\beta = 1`
    (summed, it pins :math:`\alpha` to :math:`p / (1 - p)`); :math:`p = 0.1`; features, the mean input embedding,
    normalised; one draw of the noise for all tokens of an item, which on tuning items followed the errors more closely
    than noise for each token (docs/band_gaps.md); the start, :math:`\alpha = p / (1 - p)` and the A that PEFT made; 16
    draws to predict with; and AdamW at 1e-3, as for LoRA, with no dropout beside the noise.

    The prior moves with M, and so the divergence leaves M alone: it is an empirical prior, and the spread of the
    predictions may be read as noise of the data as well as doubt about the weights. No noise comes through B where it
    is zero, and far from the data :math:`\alpha` is what the network makes of it.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        prior: The prior of the factors A, where it is another.
    """
    priors = {"A": prior or RelativeNoisePrior(RATE, noise_scope="sequence"), "B": PointPrior()}
    model = BayesianLora(peft_model, priors, likelihood, num_data, seed=seed)
    config = FitConfig(
        learning_rate=1e-3,
        head_learning_rate=1e-3,
        kl_weight=1.0,
        kl_warmup=0.0,
        draws_per_batch=1,
        seed=seed,
    )
    return Recipe(model, AmortisedNoiseGuide(model, seed=seed), config)
