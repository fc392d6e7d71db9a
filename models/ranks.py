"""The effective rank of LoRA: how many of its ranks a prior with a precision for each of them leaves in use."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from bayeslora_pyro.models.ard import ArdPrior
from bayeslora_pyro.models.lora import BayesianLora

__all__ = ["effective_rank", "effective_ranks"]


def effective_rank(precision: Tensor) -> Tensor:
    r"""Counts the ranks that precisions leave, as the exponential of the entropy of their shares of the variance.

    .. math:: \exp\Big(-\sum_k \pi_k \log \pi_k\Big), \qquad \pi_k = \alpha_k^{-1} / \textstyle\sum_j \alpha_j^{-1}

    It is `r` if all ranks are alike, and 1 if one outweighs all others.

    Args:
        precision: The precisions :math:`\alpha`. Shape `(..., rank)`.

    Returns:
        The effective ranks, between 1 and `rank`. Shape `(...)`.

    References:
        | The effective rank: a measure of effective dimensionality (Roy and Vetterli, 2007), Definition 1
        | https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf
    """
    log_share = (-precision.log()).log_softmax(-1)
    return (-(log_share.exp() * log_share).sum(-1)).exp()


def effective_ranks(model: BayesianLora, draws: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    r"""The effective rank of each adapter's update :math:`BA`, by the name of the adapted module.

    Rank `k` of the update has a variance in proportion to :math:`1 / \alpha^A_k \alpha^B_k`. A factor with another
    prior than :class:`ArdPrior` does not tell its ranks apart, and leaves the shares to the other one.

    Args:
        model: The model.
        draws: What `Posterior.sample` returned, where the precisions have a hyper-prior: the effective rank is then
            that of each draw.

    Returns:
        The effective ranks, shape `()`, or `(draw,)` where there are draws of the precisions.

    Raises:
        ValueError: If no factor has such a prior, or its precisions have to be drawn and there are no draws.
    """
    precisions: dict[str, Tensor] = {}
    for stack in model.stacks:
        prior = model.prior_of(stack)
        if isinstance(prior, ArdPrior):
            site = prior.site(stack, "precision")
            precision = (
                draws[site] if draws is not None and site in draws else prior.precision(stack).detach()
            )
            for module, own in zip(stack.adapters, precision.unbind(-2), strict=True):
                precisions[module] = precisions[module] * own if module in precisions else own
    if not precisions:
        raise ValueError("model has no factor with a precision for each rank: give some of them ArdPrior.")
    return {module: effective_rank(precision) for module, precision in precisions.items()}
