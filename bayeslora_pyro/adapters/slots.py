"""Slots: what stands for a moment where PEFT looks for a LoRA factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayeslora_pyro.adapters.operators import Operator

__all__ = ["Slot", "checkpoints_within", "replaced_parameters", "whole_inputs"]


class Slot(nn.Module):
    """Applies an operator.

    Args:
        operator: What to apply.
    """

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator

    @property
    def weight(self) -> Tensor:
        """The weight of the operator, where PEFT reads the dtype it casts inputs to."""
        return self.operator.weight

    def forward(self, inputs: Tensor) -> Tensor:
        """Applies the operator."""
        return self.operator(inputs)


@contextmanager
def replaced_parameters(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts tensors in the place of parameters, by dotted name, and the parameters back on leaving."""
    owners = {name: module.get_submodule(name.rpartition(".")[0])._parameters for name in values}
    before = {name: owner[_leaf_name(name)] for name, owner in owners.items()}
    try:
        for name, value in values.items():
            owners[name][_leaf_name(name)] = value  # type: ignore[assignment]
        yield
    finally:
        for name, parameter in before.items():
            owners[name][_leaf_name(name)] = parameter


def _leaf_name(name: str) -> str:
    return name.rpartition(".")[2]


@contextmanager
def whole_inputs(module: nn.Module | None) -> Iterator[None]:
    """Has a layer see its inputs side by side in memory.

    The activations of the last tokens of each row, which the layer of the vocabulary is given where only their logits
    are kept, have gaps between rows; torch would multiply row by row, which takes three times as long on a CPU.

    Args:
        module: The layer; with None nothing is done.
    """
    if module is None:
        yield
        return
    handle = module.register_forward_pre_hook(
        lambda _module, inputs: tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def checkpoints_within(
    module: nn.Module, context: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Has every gradient checkpoint of a `transformers` model enter a context again when it recomputes.

    The recomputation happens in the backward pass, long after the forward pass has left its context: without this, a
    checkpointed layer would silently recompute with other factors. Only non-reentrant checkpoints can do it. Without
    gradients nothing is computed again, and nothing is looked for.
    """
    if not torch.is_grad_enabled():
        yield
        return

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), context()

    func = partial(checkpoint, use_reentrant=False, context_fn=contexts)
    # Switching it on sets both attributes on the instance; to look for them in classes too takes longer than the rest.
    layers = [layer for layer in module.modules() if vars(layer).get("gradient_checkpointing")]
    layers = [layer for layer in layers if "_gradient_checkpointing_func" in vars(layer)]
    before = [layer._gradient_checkpointing_func for layer in layers]
    try:
        for layer in layers:
            layer._gradient_checkpointing_func = func  # type: ignore[assignment]
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            layer._gradient_checkpointing_func = old
