"""The negative ELBO as a module, for any loop that trains modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import local_rng, private_pyro, training_modes
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.ranks import rank, sum_over_ranks, world_size
from bayeslora_pyro.runs import check_draw_per_item, optimizer_groups
from bayeslora_pyro.types import Batch, to_device

__all__ = ["Objective"]


class Objective(nn.Module):
    r"""What `fit` minimises, as a module whose output is the loss.

    .. math:: \ell(B) = \frac{\beta}{N}\,\mathrm{KL} - \frac{1}{|B|} \sum_{n \in B} \mathbb{E}_q \log p(y_n \mid x_n, W)

    Its parameters are the variational ones, those of the prior and the head; the language model is not among them. Of
    several processes that average their gradients, as DDP does, each draws noise of its own, and the average is the
    gradient of the loss of all their items together: the divergence is counted once, whatever the sizes of the batches.
    The language model may be divided among them, by :func:`shard_base`; the parameters of this module may not.

    Args:
        model: The model, with `num_data` the number of items of the whole data set.
        guide: The guide.
        config: The settings, kept as `settings`. For `accumulate`, `max_grad_norm`, `schedule`, `checkpoint_every` and
            `snapshots` the loop has its own; `num_steps` is what the warm-up is a share of.
        seed_of_rank: The number that sets the noise of this process apart; by default its rank.
    """

    def __init__(
        self,
        model: BayesianLora,
        guide: Guide,
        config: FitConfig | None = None,
        *,
        seed_of_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.settings = config or FitConfig()
        check_draw_per_item(guide, self.settings)
        self.model, self.guide = model, guide
        self.parts: Mapping[str, float] = {}
        self._elbo = PartsELBO()  # type: ignore[no-untyped-call]
        self._seed_of_rank = seed_of_rank

    def forward(self, batch: Batch, step: int = 0, micro: int = 0) -> Tensor:
        """The loss of a batch in nats per item, with one draw, or `draws_per_batch` that share it.

        Its parts, of this process alone and never tempered, are in `parts` afterwards.

        Args:
            batch: What a collator yields: the part of this process.
            step: The optimizer step, on which noise and KL weight depend.
            micro: Which of the batches between two optimizer steps it is.

        Raises:
            FloatingPointError: If a matrix of a site cannot be factorized.
            ValueError: If FSDP has divided the objective itself.
        """
        _check_whole(self)
        settings, model = self.settings, self.model
        batch = to_device(batch, model.adapter.device)
        own = rank() if self._seed_of_rank is None else self._seed_of_rank
        place = micro * world_size() + own  # as in `fit`, where the batches of all processes are one row
        key: tuple[int | str, ...] = (settings.seed, "step", step, *([place] if place else []))
        num_draws = model.likelihood.most_draws(batch, settings.draws_per_batch)
        per_item = self.guide.per_item() if settings.draw_per_item else None
        with (
            private_pyro(),
            local_rng(*key),
            _autocast_within(model.adapter.peft_model, model.adapter.device),
        ):
            parts = self._elbo.parts(model, self.guide, batch, num_draws, per_item)
            self.parts = parts.values(model.num_data)
            return parts.loss(settings.kl_weight_at(step)) * (self._weight(batch) / model.num_data)

    def _weight(self, batch: Batch) -> float:
        """The items of this process relative to those of the average one."""
        if world_size() == 1:
            return 1.0
        size = float(self.model.likelihood.num_items(batch))
        total = torch.tensor([size], dtype=torch.float64, device=self.model.adapter.device)
        sum_over_ranks([total])
        return size * world_size() / float(total)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The groups of parameters with the step sizes of the settings, for an optimizer such as AdamW."""
        return optimizer_groups(self.model, self.guide, self.settings)

    def modes(self) -> AbstractContextManager[None]:
        """Puts the language model into the mode that `fit` runs it in: without dropout, unless the settings want it."""
        base = self.model.adapter.peft_model
        return training_modes(base, mode=lambda part: self.settings.dropout or _checkpoints(part))

    def posterior(self, history: Sequence[Mapping[str, float]] = ()) -> Posterior:
        """The posterior as it is now.

        Args:
            history: The rows that it is to keep.
        """
        metadata = {
            "num_data": self.model.num_data,
            "kl_weight": self.settings.kl_weight,
            "fit": asdict(self.settings),
        }
        return Posterior(self.model, self.guide, history=history, metadata=metadata)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Has the language model compute activations again in the backward pass, instead of keeping them."""
        base: Any = self.model.adapter.peft_model.get_base_model()
        base.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The same under the name that Transformers had for it before 5.23."""
        base: Any = self.model.adapter.peft_model.get_base_model()
        base.gradient_checkpointing_enable(**kwargs)


def _check_whole(objective: Objective) -> None:
    """Refuses an objective whose own parameters are divided among processes, which read them outside its passes too."""
    if world_size() == 1:
        return
    from torch.distributed.fsdp import FSDPModule

    if isinstance(objective, FSDPModule):
        raise ValueError(
            "objective is divided among processes, and its variational parameters have to be whole in each: leave FSDP "
            "out of the configuration of Accelerate or the Trainer, and divide the base model, shard_base(peft_model)."
        )


def _checkpoints(part: nn.Module) -> bool:
    dropout = getattr(part, "dropout", None)
    return getattr(part, "gradient_checkpointing", False) and not isinstance(dropout, float)


@contextmanager
def _autocast_within(peft_model: nn.Module, device: torch.device) -> Iterator[None]:
    """Keeps automatic mixed precision to the language model: divergences need all their digits."""
    kind = device.type
    if not torch.is_autocast_enabled(kind):
        yield
        return
    inner = torch.autocast(kind, dtype=torch.get_autocast_dtype(kind))

    def enter(*_: Any) -> None:
        inner.__enter__()

    def leave(*_: Any) -> None:
        inner.__exit__(None, None, None)

    handles = [
        peft_model.register_forward_pre_hook(enter),
        peft_model.register_forward_hook(leave, always_call=True),
    ]
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        for handle in handles:
            handle.remove()
