"""What a frozen language model says of each row of a batch, in one vector."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from bayeslora_pyro.adapters.adapter import Adapter
from bayeslora_pyro.adapters.sharding import gathered
from bayeslora_pyro.types import Batch, main_input

__all__ = ["FEATURES", "Features", "num_features", "pooled_features"]

Features: TypeAlias = Literal["embeddings", "backbone", "cls"]
"""Which features: the mean input embedding, the mean of the last hidden states, or the first of them."""

FEATURES: tuple[str, ...] = get_args(Features)


def num_features(adapter: Adapter, kind: Features) -> int:
    """The number of features.

    Raises:
        ValueError: If the base model does not say it.
    """
    owners: list[Any] = [_embedding(adapter)] if kind == "embeddings" else []
    owners.append(getattr(adapter.peft_model, "config", None))
    names = ("embedding_dim", "out_features", "hidden_size", "n_embd", "d_model")
    found = (getattr(owner, name, None) for owner in owners for name in names)
    size = next((value for value in found if isinstance(value, int)), None)
    if size is None:
        raise ValueError(f"features={kind!r}: the base model does not say how many there are in its config.")
    return size


def pooled_features(adapter: Adapter, batch: Batch, kind: Features, mask: Tensor | None) -> Tensor:
    """The features of each row, in float32 at least, of the base model without its adapter. Shape `(rows, features)`.

    No gradient flows into them.

    Args:
        adapter: The adapter.
        batch: What a collator yields.
        kind: Which features.
        mask: The tokens that count, `(rows, tokens)`; None for all.
    """
    with torch.no_grad():
        if kind == "embeddings":
            return _mean_over_tokens(_embedded(adapter, batch), mask)
        states = _hidden_states(adapter, batch)
        return _mean_over_tokens(states[:, :1], None) if kind == "cls" else _mean_over_tokens(states, mask)


def _embedding(adapter: Adapter) -> nn.Module:
    base_model: Any = adapter.peft_model.get_base_model()
    try:
        embedding = base_model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise ValueError(
            f"features='embeddings' needs a base model with get_input_embeddings, and {type(base_model).__name__} has "
            "none: take 'backbone'."
        )
    return embedding


def _embedded(adapter: Adapter, batch: Batch) -> Tensor:
    if isinstance(given := batch.get("inputs_embeds"), Tensor):
        return given
    embedding, given_input = _embedding(adapter), main_input(batch)
    embedded = gathered(adapter.peft_model, lambda: embedding(given_input))
    values: Tensor = embedded[0] if isinstance(embedded, tuple) else embedded
    return values


def _hidden_states(adapter: Adapter, batch: Batch) -> Tensor:
    """The last hidden states: with factors of zeros, those of the base model."""
    zeros = {
        stack.name: torch.zeros(len(stack), *stack.shape, device=adapter.device) for stack in adapter.stacks
    }
    outputs = adapter.run_with(zeros, batch, output_hidden_states=True)
    states: Tensor = outputs.hidden_states[-1]
    return states


def _mean_over_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    values = values.detach().to(torch.promote_types(values.dtype, torch.float32))
    if values.dim() == 2:
        return values
    if mask is None or mask.shape != values.shape[:-1]:
        return values.flatten(1, -2).mean(1)
    shares = mask.to(values) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("ntd,nt->nd", values, shares)
