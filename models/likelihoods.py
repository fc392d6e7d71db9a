"""Likelihoods: from the output of the language model to the distribution of the observation."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal, final

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.types import Batch, main_input

__all__ = ["Choice", "Classification", "Likelihood", "NextToken", "Regression"]


class Likelihood(AbstractPyroModule):
    """The distribution of the observations of a batch, given what the model puts out.

    The outputs may be those of S tiles of the batch: then the distribution has the batch shape `(S, items)`.
    """

    is_text: ClassVar[bool] = False
    """Whether an observation is a text, which is scored and not predicted."""

    @abstractmethod
    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """The distribution of the observations. Batch shape `(items,)`, or `(S, items)` for S tiles."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""

    def observed(self, batch: Batch) -> Tensor | None:
        """The observations of a batch, `(items, ...)`; None if it has none."""
        return batch.get("labels")

    def num_items(self, batch: Batch) -> int:
        """The number of items of a batch: of rows of the first input of the language model."""
        return int(main_input(batch).shape[0])

    def item_of_row(self, batch: Batch) -> Tensor:
        """The item of each row of a batch, counted from 0. Shape `(rows,)`."""
        return torch.arange(self.num_items(batch))

    def most_draws(self, batch: Batch, wanted: int) -> int:
        """The largest number of draws, up to the one wanted, that can share the items of a batch evenly."""
        return next(count for count in range(wanted, 0, -1) if self._can_share(batch, count))

    def _can_share(self, batch: Batch, count: int) -> bool:
        return self.num_items(batch) % count == 0

    def model_arguments(self, batch: Batch) -> dict[str, Any]:
        """Further arguments for the language model."""
        return {}

    def forward(self, outputs: Any, batch: Batch, num_data: int) -> Tensor:
        """Samples, or observes, the site `y` in a data plate scaled to `num_data` items."""
        distribution, observed = self.distribution(outputs, batch), self.observed(batch)
        indices = torch.arange(self.num_items(batch))
        with pyro.plate("data", num_data, subsample=indices, dim=-1):
            y: Tensor = pyro.sample("y", distribution, obs=observed)
        return y


def _wide(values: Tensor) -> Tensor:
    """Takes half precision to float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _tiles(values: Tensor, count: int) -> Tensor:
    """Splits `(S * items, ...)` into `(S, items, ...)`; leaves a single tile alone."""
    return values if values.shape[0] == count else values.reshape(-1, count, *values.shape[1:])


def _categorical(logits: Tensor, labels: Tensor | None) -> TorchDistribution:
    """Categorical over the last dimension, after a look at the labels."""
    classes = logits.shape[-1]
    if labels is not None and labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, and there are {classes} classes: they "
            f"should lie in 0 … {classes - 1}. Set num_labels of the base model, or map the labels."
        )
    return dist.Categorical(logits=logits)


@final
class Classification(Likelihood):
    """One of the classes of a sequence classifier, whose logits have shape `(items, classes)`."""

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {}

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the classes. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        return _categorical(_tiles(_wide(outputs.logits), self.num_items(batch)), batch.get("labels"))


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

    def item_of_row(self, batch: Batch) -> Tensor:
        """The question of each row of a batch. Shape `(rows,)`."""
        if self.label_tokens is not None:
            return super().item_of_row(batch)
        item: Tensor = batch["item"]
        return item

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
        rows = batch["input_ids"].shape[0]
        logits = _tiles(outputs.logits, rows)[..., -self._num_logits(batch) :, :]
        scores = (
            self._slot_logits(logits, batch)
            if self.label_tokens is not None
            else self._options(logits, batch)
        )
        return _categorical(scores, batch.get("labels"))

    def _slot_logits(self, logits: Tensor, batch: Batch) -> Tensor:
        """The logits of the label tokens at the last real token. Shape `(..., items, answers)`."""
        from_end = batch["attention_mask"].flip(-1).argmax(-1)
        slots = logits.shape[-2] - 1 - from_end
        at_slot = logits[..., torch.arange(len(slots), device=logits.device), slots, :]
        return _wide(at_slot[..., list(self.label_tokens or ())])

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
        position = torch.arange(len(item), device=item.device) - torch.searchsorted(item, item)
        table = scores.new_full((*scores.shape[:-1], count, int(position.max()) + 1), -torch.inf)
        table[..., item, position] = scores
        return table


@final
class NextToken(Likelihood):
    """Every token of a text given those before it; tokens whose label is -100 do not count."""

    is_text: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {}

    def observed(self, batch: Batch) -> Tensor | None:
        """The tokens that follow, `(items, tokens - 1)`; None if the batch has no labels."""
        labels = batch.get("labels")
        return None if labels is None else labels[:, 1:].clamp(min=0)

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the vocabulary at each position. Event shape `(tokens - 1,)`."""
        logits = _tiles(_wide(outputs.logits[:, :-1]), self.num_items(batch))
        labels = batch.get("labels")
        mask = batch["attention_mask"][:, 1:].bool() if labels is None else labels[:, 1:] != -100
        return dist.Categorical(logits=logits).mask(mask).to_event(1)


@final
class Regression(Likelihood):
    r"""A number with normal noise, :math:`y \sim \mathcal{N}(\mu(x), s^2)`.

    Args:
        noise: `"learned"` for one :math:`s` for all items, a parameter; `"predicted"` for :math:`s(x)`, from a second
            output of the head, :math:`s = \\mathrm{softplus}(\\cdot)`.
        scale: The initial :math:`s` where it is learned.
    """

    def __init__(self, noise: Literal["learned", "predicted"] = "learned", scale: float = 1.0) -> None:
        super().__init__()
        if noise not in ("learned", "predicted"):
            raise ValueError(f"noise should be 'learned' or 'predicted', and is {noise!r}.")
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.noise = noise
        self.initial_scale = scale
        if noise == "learned":
            self.scale: Any = PyroParam(torch.tensor(float(scale)), constraints.positive)

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {"noise": self.noise, "scale": self.initial_scale}

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Normal. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        values = _tiles(_wide(outputs.logits), self.num_items(batch))
        wanted = 1 if self.noise == "learned" else 2
        if values.shape[-1] != wanted:
            raise ValueError(
                f"The head has {values.shape[-1]} outputs, and noise={self.noise!r} takes {wanted}: "
                f"load the base model with num_labels={wanted}."
            )
        scale = self.scale if wanted == 1 else torch.nn.functional.softplus(values[..., 1]) + 1e-6
        return dist.Normal(values[..., 0], scale)


def _token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target. Shape `(..., tokens)`."""
    logits = _wide(logits)
    chosen = logits.gather(-1, targets.expand(logits.shape[:-1]).unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)
