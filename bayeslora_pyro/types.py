"""The words the library shares: factor stacks, batches, and the contracts between its parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import nn
from torch.distributions import Transform

__all__ = [
    "WEIGHT_DIMS",
    "Batch",
    "FactorStack",
    "Role",
    "TransformFactory",
    "Weights",
    "main_input",
    "named_dims",
    "to_device",
    "vocabulary_layer",
]

WEIGHT_DIMS = ("out_feature", "in_feature")
"""The names of the dimensions of a factor."""

Role: TypeAlias = Literal["A", "B"]

Batch: TypeAlias = Mapping[str, Any]
"""What a Hugging Face collator yields: tensors by argument name, labels under ``labels``."""

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
"""What `transformers` calls the inputs that have a row per item: of text, images and sound."""

TransformFactory: TypeAlias = Callable[[int], Transform]
"""A flow: from the number of dimensions to a bijective transform of vectors of that size."""


@dataclass(frozen=True)
class FactorStack:
    """All LoRA factors of one role and one shape, drawn together in one plate.

    Args:
        name: The name of the plate and the prefix of the sites, such as ``"A_8x384"``.
        role: ``"A"`` for factors of shape ``(r, in_features)``, ``"B"`` for ``(out_features, r)``.
        shape: The shape ``(d_o, d_i)`` of each factor.
        adapters: The names of the adapted modules, in the order of the stack.
    """

    name: str
    role: Role
    shape: tuple[int, int]
    adapters: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.adapters)


Weights: TypeAlias = Mapping[str, torch.Tensor]
"""Factors by stack name, each ``(L, d_o, d_i)``, or ``(S, L, d_o, d_i)`` for S draws."""


def named_dims(names: tuple[str, ...]) -> Any:
    """Names the event dimensions of a site, for `pyro.sample(…, infer=named_dims(names))`; diagnostics read them."""
    return {"event_dims": names}


def main_input(batch: Batch) -> torch.Tensor:
    """The input of the model that has a row per item: tokens, pixels or sound, else the first tensor but the labels.

    Raises:
        ValueError: If the batch has no such tensor.
    """
    names = (*MAIN_INPUTS, *(name for name in batch if name != "labels"))
    values = (batch.get(name) for name in names)
    found = next((value for value in values if isinstance(value, torch.Tensor) and value.dim()), None)
    if found is None:
        raise ValueError(
            f"batch has no tensor with a row per item, only {', '.join(map(repr, batch)) or 'nothing'}: give what "
            "a collator yields, such as input_ids or pixel_values."
        )
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Moves the tensors of a batch."""
    return {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in batch.items()}


def vocabulary_layer(model: nn.Module) -> nn.Module | None:
    """The layer that puts out logits over a vocabulary; None where a model has none."""
    find = getattr(model, "get_output_embeddings", None)
    return None if find is None else cast("nn.Module | None", find())
