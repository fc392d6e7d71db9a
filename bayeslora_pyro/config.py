"""The settings of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

__all__ = ["COLLAPSE", "PREDICTIVES", "WRITERS", "FitConfig"]

PREDICTIVES = ("network", "centred", "joint", "independent", "probit", "bridge", "weights")
"""How a posterior predicts: with draws in the network, as they are or centred, or linearised at the mean."""

WRITERS = ("mixture", "draw", "mean")
"""Who writes: all draws together, each draw on its own, or the mean adapter."""

COLLAPSE = (
    "The precision of this posterior is that of a linearised model: draws of its weights, run through the language "
    "model itself, lose accuracy, often nearly all of it."
)


@dataclass(frozen=True)
class FitConfig:
    """How a guide is fitted.

    Args:
        num_steps: The number of optimizer steps.
        learning_rate: The step size of Adam for variational and prior parameters.
        flow_learning_rate: The step size for the parameters of flows; their networks have many that move one output.
        head_learning_rate: The step size for trainable parameters outside LoRA, such as a fresh head; 0 keeps them.
        weight_decay: The decoupled weight decay of AdamW; a prior makes it needless.
        warmup: The share of the steps over which the step sizes grow from zero, before they go on.
        schedule: How both step sizes go on: `"constant"`, or down to zero as `"linear"` or `"cosine"`.
        kl_weight: The weight of the divergences; 1 is the ELBO, anything else is called tempered.
        kl_warmup: The share of the steps over which the weight grows from zero.
        kl_cycle: Over how many steps the weight doubles from each to the next, to start again; 0 for a constant one.
        draws_per_batch: How many draws share a batch, each serving a part of its items, at the cost of one draw.
            The gradient stays unbiased; its variance falls where the items agree, and may rise where they pull apart.
            Fewer where a batch cannot be shared evenly.
        draw_per_item: Whether each item of a batch sees a draw of its own, at the cost of one: by flipout of mean-field
            factors, by masks of dropped ones. All other factors are as without.
        num_particles: The number of such estimates per step, each with a pass over the whole batch.
        accumulate: The number of batches per optimizer step.
        max_grad_norm: Where to clip the norm of the gradient; its size is then in the history.
        dropout: Whether the language model runs in train mode, with its own dropout.
        snapshots: How many points of the run are kept as members of an ensemble, evenly spaced over its second half.
        checkpoint_every: After how many steps to write the checkpoint; 0 for only at the end.
        seed: The seed of everything random.
    """

    num_steps: int = 600
    learning_rate: float = 5e-3
    flow_learning_rate: float = 5e-5
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    kl_weight: float = 0.05
    kl_warmup: float = 0.3
    kl_cycle: int = 0
    draws_per_batch: int = 4
    draw_per_item: bool = False
    num_particles: int = 1
    accumulate: int = 1
    max_grad_norm: float | None = None
    dropout: bool = False
    snapshots: int = 1
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in {
            "num_steps": 1,
            "draws_per_batch": 1,
            "num_particles": 1,
            "accumulate": 1,
            "snapshots": 1,
            "kl_cycle": 0,
            "checkpoint_every": 0,
        }.items():
            if type(getattr(self, name)) is not int or getattr(self, name) < least:
                raise ValueError(
                    f"{name} should be a whole number of at least {least}, and is {getattr(self, name)!r}."
                )
        if 2 * self.snapshots > self.num_steps and self.snapshots > 1:
            raise ValueError(
                f"snapshots={self.snapshots} needs num_steps of at least {2 * self.snapshots}, as they lie in the "
                f"second half of the run; it is {self.num_steps}."
            )
        for name in (
            "learning_rate",
            "flow_learning_rate",
            "head_learning_rate",
            "weight_decay",
            "kl_weight",
        ):
            value, usual = getattr(self, name), self.__dataclass_fields__[name].default
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"{name} should be finite and not be negative, and is {value}: give a number such as {usual}."
                )
        if self.learning_rate == 0:
            raise ValueError("learning_rate should be positive, and is 0: give a number such as 0.005.")
        if not 0 <= self.kl_warmup <= 1:
            raise ValueError(
                f"kl_warmup should be a share of the steps between 0 and 1, and is {self.kl_warmup}."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f"warmup should be a share of the steps, at least 0 and below 1, and is {self.warmup}."
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(
                f"max_grad_norm should be positive, or None for no clipping; it is {self.max_grad_norm}."
            )
        if self.schedule not in ("constant", "linear", "cosine"):
            raise ValueError(
                f"schedule should be 'constant', 'linear' or 'cosine', and is {self.schedule!r}."
            )

    def replace(self, **changes: Any) -> FitConfig:
        """Returns settings with some fields changed."""
        if unknown := set(changes) - set(self.__dataclass_fields__):
            raise TypeError(
                f"There is no setting {sorted(unknown)[0]!r}. The settings are {', '.join(self.__dataclass_fields__)}."
            )
        return replace(self, **changes)

    def kl_weight_at(self, step: int) -> float:
        r"""The weight of the divergences at a step.

        Step :math:`i = 1, \dots, M` of a cycle of :math:`M` steps has the weight :math:`\beta M \pi_i`, whose mean over
        the cycle is :math:`\beta`,

        .. math:: \pi_i = 2^i / (2^{M+1} - 2), \qquad \textstyle\sum_i \pi_i = 1

        References:
            | Weight Uncertainty in Neural Networks (Blundell et al., 2015), Section 3.4, where they fall
            | https://arxiv.org/abs/1505.05424
            | BLoB (Wang et al., 2024), where they grow
            | https://arxiv.org/abs/2406.11675
        """
        warmup = self.kl_warmup * self.num_steps
        weight = self.kl_weight * min(1.0, (step + 1) / warmup) if warmup > 0 else self.kl_weight
        if self.kl_cycle:  # all powers are taken relative to 2^(M + 1), which may be too large for a number
            place = step % self.kl_cycle + 1
            weight *= self.kl_cycle * 2.0 ** (place - self.kl_cycle - 1) / (1 - 2.0**-self.kl_cycle)
        return weight

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """After how many steps each snapshot is taken, the last at the end."""
        before_end = reversed(range(self.snapshots))
        return tuple(self.num_steps - k * self.num_steps // (2 * self.snapshots) for k in before_end)

    def learning_rate_factor_at(self, step: int) -> float:
        """What the step sizes are multiplied by at a step."""
        grown = self.warmup * self.num_steps
        if step < grown:
            return (step + 1) / (grown + 1)
        done = (step - grown) / (self.num_steps - grown)
        if self.schedule == "linear":
            return 1 - done
        return (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1.0
