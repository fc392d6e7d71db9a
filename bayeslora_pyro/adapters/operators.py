"""Operators: what a slot applies to activations in the place of a LoRA factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from bayeslora_pyro.types import Weights

__all__ = ["LinearOperator", "Operator", "PerItem", "check_rows", "make_operators", "varying"]


class Operator(Protocol):
    """What a slot applies in the place of a LoRA factor."""

    @property
    def weight(self) -> Tensor:
        """A tensor of the dtype in which the operator works; PEFT casts its inputs to it."""
        ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(items, ..., in)` to `(items, ..., out)`."""
        ...


class LinearOperator:
    """Applies one weight to the whole batch, or S weights to its S tiles in one batched product.

    Args:
        weight: The factor, shape `(out, in)`, or one per tile, shape `(S, out, in)`.
        rows: The number of rows of all tiles, if it is known.
    """

    def __init__(self, weight: Tensor, rows: int | None = None) -> None:
        self.weight = weight
        # As a size, which `torch.compile` keeps open; a number it would compile in, and again for each other number.
        self._rows = None if rows is None else torch.empty(rows, 0)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(S * items, ..., in)` to `(S * items, ..., out)`.

        Raises:
            ValueError: If there are several tiles, and the rows do not come first in the activations.
        """
        inputs = inputs.to(self.weight.dtype)
        num_tiles = self.weight.shape[0] if self.weight.dim() == 3 else 1
        if num_tiles == 1:  # as PEFT does it; a batched product of one would run on one thread
            return nn.functional.linear(inputs, self.weight.reshape(self.weight.shape[-2:]))
        rows = 1 if self._rows is None else self._rows.shape[0]
        if inputs.shape[0] % rows:  # a multiple, if tokens are rows too
            raise ValueError(
                f"{num_tiles} draws at once need activations whose first dimension is that of the {rows} rows, "
                f"and an adapted module has activations of shape {tuple(inputs.shape)}: fit with draws_per_batch=1 and "
                "predict with memory_budget=1, or leave the module out of target_modules."
            )
        outputs = torch.bmm(inputs.reshape(num_tiles, -1, inputs.shape[-1]), self.weight.mT)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


class PerItem(Protocol):
    """Gives each item of a batch a draw of its own of the factors of a stack, at the cost of one."""

    def operators(self, values: Tensor, item_of_row: Tensor) -> Sequence[Operator]:
        """What applies each factor of the stack, with its chance drawn from torch's generator.

        Args:
            values: What the stack was drawn to be. Shape `(L, d_o, d_i)`, or `(S, L, d_o, d_i)` for S draws, each of
                which serves an equal part of the rows.
            item_of_row: The item of each row of the batch, counted from 0. Shape `(rows,)`.
        """
        ...


def varying(weights: Weights) -> dict[str, list[bool]]:
    """Tells which factors differ between draws, by stack name.

    Args:
        weights: The factors by stack name. Shapes `(S, L, d_o, d_i)`.
    """
    return {name: _differing(values).tolist() for name, values in weights.items()}


def _differing(values: Tensor) -> Tensor:
    """Which factors of a stack differ between draws, compared one draw at a time. Shape `(L,)`."""
    differs = torch.zeros(values.shape[1], dtype=torch.bool, device=values.device)
    for draw in values[1:]:
        differs |= (draw != values[0]).flatten(1).any(-1)
    return differs


def make_operators(
    weights: Weights,
    per_item: Mapping[str, PerItem] | None = None,
    item_of_row: Tensor | None = None,
    *,
    random: Mapping[str, Sequence[bool]] | None = None,
    rows: int | None = None,
) -> dict[str, Sequence[Operator]]:
    """Makes the operators of the factors of each stack, in their order.

    Args:
        weights: The factors by stack name. Shapes `(L, d_o, d_i)`, or `(S, L, d_o, d_i)`.
        per_item: How each item has draws of its own, for the stacks of which it has, by name.
        item_of_row: The item of each row of the batch, counted from 0. Shape `(rows,)`; needed by `per_item`.
        random: Which factors differ between the S draws, by stack name, as :func:`varying` tells; the others are
            applied to all tiles at once. By default all.
        rows: The number of rows of all tiles, if it is known.
    """
    per_item, random = per_item or {}, random or {}
    return {
        name: per_item[name].operators(values, cast(Tensor, item_of_row))
        if name in per_item
        else _linear(values, random.get(name, [True] * values.shape[-3]), rows)
        for name, values in weights.items()
    }


def _linear(values: Tensor, random: Sequence[bool], rows: int | None) -> list[Operator]:
    pairs = zip(values.unbind(-3), random, strict=True)
    return [LinearOperator(value if differs else value[0], rows) for value, differs in pairs]


def check_rows(inputs: Tensor, rows: int) -> None:
    """Raises a `ValueError` if activations do not have one entry for each row of the batch."""
    if inputs.shape[0] != rows:
        raise ValueError(
            f"draw_per_item=True needs activations with one entry for each of the {rows} rows of the batch, and an "
            f"adapted module has activations of shape {tuple(inputs.shape)}: fit with draw_per_item=False, or leave "
            "the module out of target_modules."
        )
