"""Draws centred on what the mean adapter says, as confident as the draws of the network."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bayeslora_pyro.metrics import mean_log_probs

__all__ = ["centre", "matching_temperature"]

BOUNDS = 1e-2, 1e2
"""The lowest and the highest temperature that is looked for."""

GOLDEN = (math.sqrt(5) - 1) / 2


def centre(mean: Tensor, draws: Tensor, temperature: float) -> Tensor:
    r"""Centres draws of the scores of classes on those of the mean adapter.

    .. math:: f^c_{2k},\, f^c_{2k+1} = \tfrac1T f(\bar W) \pm \tfrac12 \big(f(W_{2k}) - f(W_{2k+1})\big)

    Draws that come in opposite pairs, :math:`\bar W \pm \delta`, differ by what is odd in the noise, twice
    :math:`J \delta` up to third order: these are draws of the model linearised at its mean, without its Jacobian.
    What is even in the noise is left out. Part of it is a lower gain, which makes the draws less confident than
    their mean, and which T puts back; the rest is a bias, for which a fit makes up on its own data only.

    Args:
        mean: The scores of the mean adapter. Shape `(item, class)`.
        draws: The scores of opposite pairs, one after the other. Shape `(draw, item, class)`.
        temperature: T.

    Returns:
        The centred scores. Shape `(draw, item, class)`. A class that is ruled out stays so.
    """
    odd = (draws[0::2] - draws[1::2]) / 2
    centred = mean / temperature + torch.stack([odd, -odd], dim=1).flatten(0, 1)
    return centred.masked_fill(mean.isneginf(), -torch.inf)


def matching_temperature(parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    r"""The temperature at which centred draws are as confident as the draws themselves; it takes no labels.

    .. math:: T = \arg\min_T \sum_n \mathrm{KL}\big(\tfrac1S \textstyle\sum_s p(y \mid x_n, W_s) \,\big\|\,
        \tfrac1S \sum_s p^c_T(y \mid x_n, W_s)\big)

    Args:
        parts: The scores of the mean adapter and of draws, of each batch, as for :func:`centre`.

    Returns:
        The temperature, by golden section of its logarithm.
    """
    targets = [mean_log_probs(draws.log_softmax(-1)).exp() for _, draws in parts]

    def cross_entropy(log_temperature: float) -> float:
        temperature, total = math.exp(log_temperature), 0.0
        for (mean, draws), target in zip(parts, targets, strict=True):
            centred = mean_log_probs(centre(mean, draws, temperature).log_softmax(-1))
            total -= float((target * centred.clamp(min=-1e4)).sum())
        return total

    low, high = (math.log(bound) for bound in BOUNDS)
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = cross_entropy(left), cross_entropy(right)
    for _ in range(40):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = cross_entropy(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = cross_entropy(right)
    return math.exp((low + high) / 2)
