"""How well texts are foreseen, by token, and how sure that figure is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_pyro.metrics.evaluation import bootstrap

__all__ = ["Perplexity", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """A perplexity with its two kinds of error bars.

    Args:
        value: The perplexity of the mixture of all draws.
        low: The lower end of its interval over items, by the bootstrap.
        high: The upper end.
        of_draws: The perplexity of each draw alone. Shape `(draw,)`.
    """

    value: float
    low: float
    high: float
    of_draws: Tensor

    @property
    def nll(self) -> float:
        """The mean negative log-likelihood of a token, in nats."""
        return float(torch.tensor(self.value, dtype=torch.float64).log())

    @property
    def deviation_of_draws(self) -> float:
        """The standard deviation of the perplexities of the draws."""
        return float(self.of_draws.std(correction=0))


def perplexity(
    log_likelihood: Tensor,
    num_tokens: Tensor,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Perplexity:
    r"""Compute the perplexity of texts under draws that each foresee a whole text.

    .. math:: \exp\Big( -\frac{\sum_n \log \frac1S \sum_s p_s(x_n)}{\sum_n T_n} \Big)

    Args:
        log_likelihood: The log-likelihood of each text under each draw, :math:`\log p_s(x_n)`. Shape `(draw, item)`.
        num_tokens: The number of tokens :math:`T_n` that were scored. Shape `(item,)`.
        num_resamples: The number of resamples of the items.
        level: The probability of the interval.
        seed: The seed of the resampling.

    Raises:
        ValueError: If the shapes do not fit, or there are no tokens.
    """
    if log_likelihood.dim() != 2 or log_likelihood.shape[1:] != num_tokens.shape:
        raise ValueError(
            f"log_likelihood {tuple(log_likelihood.shape)} and num_tokens {tuple(num_tokens.shape)} do not fit: give "
            "the shapes (draw, item) and (item,)"
        )
    if not bool(num_tokens.any()):
        raise ValueError("num_tokens is 0 everywhere: nothing was scored")
    scores, tokens = log_likelihood.double().cpu(), num_tokens.double().cpu()
    mean = scores.logsumexp(0) - torch.tensor(float(len(scores))).log()
    low, high = bootstrap(_perplexity, mean, tokens, num_resamples=num_resamples, level=level, seed=seed)
    of_draws = torch.tensor([_perplexity(score, tokens) for score in scores], dtype=torch.float64)
    return Perplexity(_perplexity(mean, tokens), low, high, of_draws)


def _perplexity(scores: Tensor, tokens: Tensor) -> float:
    return float((-scores.sum() / tokens.sum()).exp())
