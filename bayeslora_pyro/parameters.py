"""How many parameters a Bayesian adapter has, beside those of the LoRA that it stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from bayeslora_pyro.guides import Guide
from bayeslora_pyro.models import BayesianLora

__all__ = ["ParameterCounts", "count_parameters"]


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of trainable parameters.

    Args:
        lora: Those of plain LoRA, the entries of all factors.
        head: Those outside LoRA, such as a fresh classification head; LoRA trains them too.
        total: Those of the model and its guide, the head included.
    """

    lora: int
    head: int
    total: int

    @property
    def extra(self) -> int:
        """What comes on top of LoRA and head; negative where the inducing matrices are the smaller ones."""
        return self.total - self.head - self.lora


def count_parameters(model: BayesianLora, guide: Guide, *, members: int = 1) -> ParameterCounts:
    """Counts the trainable parameters of a model and its guide, or of several alike.

    Works on the meta device too, where a model of any size is free.

    Args:
        model: The model.
        guide: The guide.
        members: The number of members of an ensemble, each of which has as many; plain LoRA's are counted once.
    """
    lora = sum(len(stack) * stack.shape[0] * stack.shape[1] for stack in model.stacks)
    return ParameterCounts(
        lora=lora,
        head=members * _count(model.head.parameters()),
        total=members * _count({*model.parameters(), *guide.parameters()}),
    )


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
