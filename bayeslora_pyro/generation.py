"""What a posterior writes, as a value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Generation", "GenerationByDraw", "mixture"]


def mixture(log_probs: Tensor) -> Tensor:
    r"""The log of the mean probability of S draws, :math:`\log \frac1S \sum_s p_s`; of equal draws exactly theirs.

    Args:
        log_probs: The log-probabilities of each draw. Shape `(draw, …)`.
    """
    largest = log_probs.amax(0)
    centre = largest.where(largest.isfinite(), torch.zeros_like(largest))
    return centre + (log_probs - centre).exp().mean(0).log()


@dataclass(frozen=True)
class Generation:
    r"""The texts that all draws of a posterior write together, one for each prompt.

    Each token is chosen by the mean of what the draws, held fixed, expect next,

    .. math:: \bar p(y_t \mid y_{<t}, x) = \frac1S \sum_s p_s(y_t \mid y_{<t}, x)

    whose uncertainty, before any temperature, splits at each token into two parts:
    :math:`H[\bar p] = \frac1S \sum_s H[p_s] + I[y_t; W]`. What comes behind the end of a text is zero.

    Args:
        tokens: The new tokens, padded behind the end. Shape `(prompt, token)`.
        mask: Which of them are a part of the text, its end included. Shape `(prompt, token)`.
        log_probs: The log-probability of each token under each draw. Shape `(draw, prompt, token)`.
        entropy: The total uncertainty about each token, :math:`H[\bar p]`, in nats. Shape `(prompt, token)`.
        aleatoric: The mean entropy of the draws. Shape `(prompt, token)`.
        texts: The texts, where a tokenizer was given.
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    entropy: Tensor
    aleatoric: Tensor
    texts: tuple[str, ...] | None = None

    @property
    def epistemic(self) -> Tensor:
        """The mutual information of each token and the weights: total minus aleatoric. Shape `(prompt, token)`."""
        return (self.entropy - self.aleatoric).clamp(min=0)

    @property
    def num_tokens(self) -> Tensor:
        """The length of each text. Shape `(prompt,)`."""
        return self.mask.sum(-1)

    @property
    def log_prob(self) -> Tensor:
        r"""The log-probability of each text, :math:`\sum_t \log \bar p(y_t \mid y_{<t}, x)`. Shape `(prompt,)`."""
        return mixture(self.log_probs).sum(-1)

    @property
    def sequence_entropy(self) -> Tensor:
        """The total uncertainty along each text, summed over its tokens. Shape `(prompt,)`."""
        return self.entropy.sum(-1)

    @property
    def sequence_aleatoric(self) -> Tensor:
        """The aleatoric part along each text. Shape `(prompt,)`."""
        return self.aleatoric.sum(-1)

    @property
    def sequence_epistemic(self) -> Tensor:
        """The epistemic part along each text. Shape `(prompt,)`."""
        return self.epistemic.sum(-1)


@dataclass(frozen=True)
class GenerationByDraw:
    r"""The texts that each draw of a posterior writes on its own.

    Each text is scored under every draw. Where texts were sampled, at temperature 1, the means over them estimate the
    entropies of whole texts under these S draws, whose epistemic part is :math:`\log S` at most. Greedy texts only show
    where the draws part.

    Args:
        tokens: The new tokens, padded behind the end. Shape `(draw, prompt, token)`.
        mask: Which of them are a part of the text, its end included. Shape `(draw, prompt, token)`.
        log_probs: The log-probability under draw `r` of each token that draw `s` has written, at `[r, s]`, zero behind
            the end. Shape `(draw, draw, prompt, token)`.
        texts: The texts of each prompt, draw by draw, where a tokenizer was given.

    References:
        | Uncertainty Estimation in Autoregressive Structured Prediction (Malinin and Gales, 2021)
        | https://arxiv.org/abs/2002.07650
        | Self-Consistency Improves Chain of Thought Reasoning in Language Models (Wang et al., 2023)
        | https://arxiv.org/abs/2203.11171
    """

    tokens: Tensor
    mask: Tensor
    log_probs: Tensor
    texts: tuple[tuple[str, ...], ...] | None = None

    @property
    def num_tokens(self) -> Tensor:
        """The length of each text. Shape `(draw, prompt)`."""
        return self.mask.sum(-1)

    @property
    def log_prob(self) -> Tensor:
        r"""The log-probability of each text under its draw, :math:`\log p_s(y_s \mid x)`. Shape `(draw, prompt)`."""
        return self._of_sequences.diagonal().mT

    @property
    def mixture_log_prob(self) -> Tensor:
        r"""That under all draws, :math:`\log \frac1S \sum_r p_r(y_s \mid x)`. Shape `(draw, prompt)`."""
        return mixture(self._of_sequences)

    @property
    def entropy(self) -> Tensor:
        r"""The total uncertainty, :math:`-\frac1S \sum_s \log \bar p(y_s \mid x)`, in nats. Shape `(prompt,)`."""
        return -self.mixture_log_prob.mean(0)

    @property
    def aleatoric(self) -> Tensor:
        r"""The part within the draws, :math:`-\frac1S \sum_s \log p_s(y_s \mid x)`. Shape `(prompt,)`."""
        return -self.log_prob.mean(0)

    @property
    def epistemic(self) -> Tensor:
        """The part between them: total minus aleatoric; an estimate, which may fall below zero. Shape `(prompt,)`."""
        return (self.log_prob - self.mixture_log_prob).mean(0)

    @property
    def _of_sequences(self) -> Tensor:
        return self.log_probs.sum(-1)

    def majority(self, answer_of: Callable[[str], str] = str.strip) -> tuple[tuple[str, float], ...]:
        """What most draws answer to each prompt, the first of them in a tie, and the share of the draws that do.

        Args:
            answer_of: From a text to the answer in it.
        """
        counts = self._counts(answer_of)
        return tuple((max(each, key=each.__getitem__), max(each.values()) / each.total()) for each in counts)

    def answer_entropy(self, answer_of: Callable[[str], str] = str.strip) -> Tensor:
        """The entropy of the answers of the draws as they are counted, in nats. Shape `(prompt,)`.

        Args:
            answer_of: From a text to the answer in it.
        """
        shares = [torch.tensor([*each.values()]).double() / each.total() for each in self._counts(answer_of)]
        return torch.stack([torch.special.entr(share).sum() for share in shares])

    def _counts(self, answer_of: Callable[[str], str]) -> list[Counter[str]]:
        if self.texts is None:
            raise ValueError("texts are not known: give generate the tokenizer.")
        return [Counter(map(answer_of, each)) for each in self.texts]
