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
    option it is), and items may have different numbers of options.

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
        if self.label_tokens is not None:
            return super().num_items(batch)
        return int(batch["item"].max()) + 1

    def _can_share(self, batch: Batch, count: int) -> bool:
        """Whether equal parts of the rows hold whole items, options and all."""
        if self.label_tokens is not None:
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
        wanted = batch["attention_mask"] if self.label_tokens is not None else batch["option_mask"]
        first = wanted.flip(-1).argmax(-1).max() if self.label_tokens is not None else None
        if first is not None:
            return int(first) + 1
        return int(wanted.shape[-1] - wanted.argmax(-1).min()) + 1

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the answers. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        return self.of_scores(self.scores(outputs, batch), batch)

    def scores(self, outputs: Any, batch: Batch) -> Tensor:
        """The logits of the answers. Shape `(items, answers)`, or `(S, items, answers)`."""
        rows = batch["input_ids"].shape[0]
        logits = tiles(outputs.logits, rows)[..., -self._num_logits(batch) :, :]
        if self.label_tokens is not None:
            return self._slot_logits(logits, batch)
        return self._options(logits, batch)

    def of_scores(self, scores: Tensor, batch: Batch) -> TorchDistribution:
        """Categorical over the answers. Batch shape `(..., items)`."""
        return categorical(scores, batch.get("labels"))

    def fisher_root(self, scores: Tensor) -> Tensor:
        """The root of the covariance of a one-hot answer. Shape `(items, answers, answers)`."""
        return categorical_root(scores)

    def item_of_row(self, batch: Batch) -> Tensor:
        """The question that each row of the inputs belongs to. Shape `(rows,)`."""
        item: Tensor = batch["item"] if self.label_tokens is None else super().item_of_row(batch)
        return item

    def column_of_row(self, batch: Batch) -> Tensor | None:
        """Which of the options of its question each row is; None where a row is asked for all label tokens."""
        return _positions(batch["item"]) if self.label_tokens is None else None

    def _slot_logits(self, logits: Tensor, batch: Batch) -> Tensor:
        """The logits of the label tokens at the last real token. Shape `(..., items, answers)`."""
        from_end = batch["attention_mask"].flip(-1).argmax(-1)
        slots = logits.shape[-2] - 1 - from_end
        at_slot = logits[..., torch.arange(len(slots), device=logits.device), slots, :]
        return wide(at_slot[..., list(self.label_tokens or ())])

    def _options(self, logits: Tensor, batch: Batch) -> Tensor:
        """The log-likelihoods of the options, `-inf` where an item has fewer. Shape `(..., items, options)`."""
        if not bool(batch["option_mask"].any(-1).all()):  # it would score log 1, and win
            raise ValueError(
                "option_mask has an option without a token: it was empty, or cut off. Raise max_length."
            )
        kept = logits.shape[-2]
        mask = batch["option_mask"][:, -kept:][:, 1:].to(torch.float32)
        targets = batch["input_ids"][:, -kept:][:, 1:]
        log_probs = _token_log_probs(logits[..., :-1, :], targets)
        scores = (log_probs * mask).sum(-1)
        if self.length_normalised:
            scores = scores / mask.sum(-1)
        item = batch["item"]
        count = self.num_items(batch)
        position = _positions(item)
        table = scores.new_full((*scores.shape[:-1], count, int(position.max()) + 1), -torch.inf)
        table[..., item, position] = scores
        return table


def _positions(item: Tensor) -> Tensor:
    """The number of each row among those of its item, from 0."""
    return torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)


def _token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target. Shape `(..., tokens)`."""
    logits = wide(logits)
    chosen = logits.gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
