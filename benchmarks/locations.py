"""Inducing columns where the activations are: an experiment, see docs/calibration.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro import BayesianLora
from bayeslora_pyro.types import Batch

Moments = list[Tensor]
"""The sum of activations, that of their outer products, and their number."""

NORM = 6.5
"""The length of the locations, about that of those drawn at random for 384 inputs and nine columns."""


@torch.no_grad()
def locate_columns(model: BayesianLora, batches: Iterable[Batch]) -> list[str]:
    r"""Puts the inducing columns of the factors A on the mean and the main directions of their inputs.

    .. math:: z_1 = \bar x / |\bar x|, \qquad z_2, \dots, z_q = \text{the main eigenvectors of } \mathrm{cov}(x)

    In these directions the variance of a factor is that of the inducing matrix, entry by entry, and no longer the noise
    that all directions share.

    Args:
        model: A model with the inducing prior.
        batches: What a collator yields, with an `attention_mask`.

    Returns:
        The names of the stacks of the factors A.
    """
    adapter, moments = model.adapter, dict[str, Moments]()
    stacks = [stack for stack in model.stacks if stack.role == "A"]
    counts: list[Tensor] = []

    def reader(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def read(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            inputs = arguments[0][counts[-1].bool()].float()
            own = [inputs.sum(0), inputs.mT @ inputs, torch.tensor(float(len(inputs)))]
            known = moments.setdefault(name, [torch.zeros(()) for _ in own])
            moments[name] = [one + other for one, other in zip(known, own, strict=True)]

        return read

    peft_model: Any = adapter.peft_model
    was_training = peft_model.training
    with ExitStack() as hooks:
        hooks.callback(peft_model.train, was_training)
        peft_model.eval()
        for name in (name for stack in stacks for name in stack.adapters):
            handle = adapter.base_layer(name).register_forward_pre_hook(reader(name))
            hooks.callback(handle.remove)
        for batch in batches:
            counts.append(batch["attention_mask"])
            peft_model(**{name: value for name, value in batch.items() if name != "labels"})
    for stack in stacks:
        locations = getattr(model.prior_of(stack), stack.name).z_col
        for index, name in enumerate(stack.adapters):
            locations[index] = NORM * _directions(*moments[name], count=locations.shape[1])
    return [stack.name for stack in stacks]


def _directions(total: Tensor, products: Tensor, number: Tensor, count: int) -> Tensor:
    """The mean and the main directions around it, of unit length. Shape `(count, inputs)`."""
    mean = total / number
    main = torch.linalg.eigh(products / number - torch.outer(mean, mean)).eigenvectors[:, 1 - count :]
    return torch.cat([(mean / mean.norm())[None], main.mT.flip(0)])
