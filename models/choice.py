"""The choice between several answers, by what a decoder makes of them."""

from __future__ import annotations

from typing import Any, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.models.likelihood import Likelihood, categorical, categorical_root, tiles, wide
from bayeslora_pyro.types import Batch

__all__ = ["Choice"]


@final
class Choice(Likelihood):
    r"""One of several answers, by what a decoder makes of them.

    With `label_tokens`, the logits of these tokens at the answer slot, the last real token of the prompt. Without,
    the log-likelihood of each option, :math:`\ell_k = \sum_t \log p(t_{k,i} \mid \text{question}, t_{k,<i})`: the
    batch then has a row per option, with `option_mask` (which of its tokens are the option's) and `item` (whose
    option it is); or, packed, a row per item, with `option_mask` and `option` (whose token it is; -1 where all share
    it). Items may have different numbers of options. Packed, a question is read once, and the scores are the same.

    Args:
        label_tokens: The token of each answer, such as those of `" A"`, `" B"`; None for option log-likelihoods.
        length_normalised: Whether to divide the log-likelihood of an option by its number of tokens.
    """

    def __init__(
        self, label_tokens: tuple[int, ...] | list[int] | None = None, length_normalised: bool = False
    ) -> None:
        super().__init__()
        self.label_tokens = None if label_tokens is None else tuple(label_tokens)
        self.length_normalised = length_normalised

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {"label_tokens": self.label_tokens, "length_normalised": self.length_normalised}

    def num_items(self, batch: Batch) -> int:
        """The number of questions of a batch."""
        if self._row_is_item(batch):
            return super().num_items(batch)
        return int(batch["item"].max()) + 1

    def _row_is_item(self, batch: Batch) -> bool:
        return self.label_tokens is not None or "option" in batch

    def _can_share(self, batch: Batch, count: int) -> bool:
        """Whether equal parts of the rows hold whole items, options and all."""
        if self._row_is_item(batch):
            return super()._can_share(batch, count)
        item = batch["item"]
        if len(item) % count:
            return False
        parts = item.reshape(count, -1)
        return bool((parts[1:, 0] != parts[:-1, -1]).all())

    def model_arguments(self, batch: Batch) -> dict[str, Any]:
        """Asks for the logits of the last tokens only: a vocabulary is large."""
        return {"logits_to_keep": self._num_logits(batch)}

    def _num_logits(self, batch: Batch) -> int:
        if self.label_tokens is not None:
            return int(_from_end(batch["attention_mask"]).max()) + 1
        wanted = batch["option"] >= 0 if "option" in batch else batch["option_mask"]
        return int(wanted.shape[-1] - wanted.long().argmax(-1).min()) + 1

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the answers. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        return self.of_scores(self.scores(outputs, batch), batch)

    def scores(self, outputs: Any, batch: Batch) -> Tensor:
        """The logits of the answers. Shape `(items, answers)`, or `(S, items, answers)`."""
        rows = batch["input_ids"].shape[0]
        logits = tiles(outputs.logits, rows)[..., -self._num_logits(batch) :, :]
        if self.label_tokens is not None:
            return self._slot_logits(logits, batch)
        return self._packed(logits, batch) if "option" in batch else self._options(logits, batch)

    def of_scores(self, scores: Tensor, batch: Batch) -> TorchDistribution:
        """Categorical over the answers. Batch shape `(..., items)`."""
        return categorical(scores, batch.get("labels"))

    def fisher_root(self, scores: Tensor) -> Tensor:
        """The root of the covariance of a one-hot answer. Shape `(items, answers, answers)`."""
        return categorical_root(scores)

    def item_of_row(self, batch: Batch) -> Tensor:
        """The question that each row of the inputs belongs to. Shape `(rows,)`."""
        item: Tensor = super().item_of_row(batch) if self._row_is_item(batch) else batch["item"]
        return item

    def column_of_row(self, batch: Batch) -> Tensor | None:
        """Which of the options of its question each row is; None where a row is asked for all of them."""
        return None if self._row_is_item(batch) else _positions(batch["item"])

    def _slot_logits(self, logits: Tensor, batch: Batch) -> Tensor:
        """The logits of the label tokens at the last real token. Shape `(..., items, answers)`."""
        slots = logits.shape[-2] - 1 - _from_end(batch["attention_mask"])
        at_slot = logits[..., torch.arange(len(slots), device=logits.device), slots, :]
        return wide(at_slot[..., list(self.label_tokens or ())])

    def _options(self, logits: Tensor, batch: Batch) -> Tensor:
        """The log-likelihoods of the options, `-inf` where an item has fewer. Shape `(..., items, options)`."""
        _check_tokens(batch["option_mask"].any(-1))
        kept = logits.shape[-2]
        mask = batch["option_mask"][:, -kept:][:, 1:].to(torch.float32)
        targets = batch["input_ids"][:, -kept:][:, 1:]
        log_probs = _token_log_probs(logits[..., :-1, :], targets)
        scores = self._score((log_probs * mask).sum(-1), mask.sum(-1))
        item = batch["item"]
        count = self.num_items(batch)
        position = _positions(item)
        table = scores.new_full((*scores.shape[:-1], count, int(position.max()) + 1), -torch.inf)
        table[..., item, position] = scores
        return table

    def _packed(self, logits: Tensor, batch: Batch) -> Tensor:
        """The same from packed rows, whose options begin behind the tokens that they share."""
        kept = logits.shape[-2]
        option, mask, targets = (batch[name][:, -kept:] for name in ("option", "option_mask", "input_ids"))
        count = int(option.max()) + 1
        own = option.clamp(min=0)
        lengths = torch.zeros(len(own), count, device=own.device).scatter_add(-1, own, mask.to(torch.float32))
        exists = torch.arange(count, device=own.device) <= option.amax(-1, keepdim=True)
        _check_tokens(lengths.bool() | ~exists)
        log_probs = _token_log_probs(logits, targets, _predecessors(option)) * mask
        sums = log_probs.new_zeros(*log_probs.shape[:-1], count).scatter_add(
            -1, own.expand_as(log_probs), log_probs
        )
        return self._score(sums, lengths.clamp(min=1)).masked_fill(~exists, -torch.inf)

    def _score(self, log_probs: Tensor, lengths: Tensor) -> Tensor:
        return log_probs / lengths if self.length_normalised else log_probs


def _positions(item: Tensor) -> Tensor:
    """The number of each row among those of its item, from 0."""
    return torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)


def _predecessors(option: Tensor) -> Tensor:
    """The place that each token is foretold from: the one before it, or the last that all options share.

    Shape `(rows, tokens)`; what stands there for shared tokens means nothing.
    """
    places = torch.arange(option.shape[-1], device=option.device).expand_as(option)
    continues = option == option.roll(1, -1)
    last_shared = (option >= 0).long().argmax(-1, keepdim=True) - 1
    return torch.where(continues, places - 1, last_shared).clamp(min=0)


def _token_log_probs(logits: Tensor, targets: Tensor, places: Tensor | None = None) -> Tensor:
    """The log-probability of each target, at its own place or at those given. Shape `(..., tokens)`."""
    logits = wide(logits)
    normaliser = logits.logsumexp(-1)
    if places is None:
        chosen = logits.gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
        return chosen - normaliser
    rows = torch.arange(len(places), device=places.device).unsqueeze(-1)
    return logits[..., rows, places, targets] - normaliser[..., rows, places]


def _from_end(mask: Tensor) -> Tensor:
    """How many places behind the last real token each row ends. Shape `(rows,)`."""
    return mask.flip(-1).argmax(-1)


def _check_tokens(has_tokens: Tensor) -> None:
    if not bool(has_tokens.all()):  # it would score log 1, and win
        raise ValueError(
            "option_mask has an option without a token: it was empty, or cut off. Raise max_length."
        )
