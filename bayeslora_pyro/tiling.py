"""How many draws fit into one forward pass."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayeslora_pyro.types import Batch

__all__ = ["draws_per_pass"]

LIVE_ACTIVATIONS = 6
"""Tensors of hidden size that a transformer layer holds at once beside its widest one, without gradients."""


def draws_per_pass(model: nn.Module, batch: Batch, memory_budget: int) -> int:
    """Estimates how many tiles of a batch fit into a budget.

    Args:
        model: The language model, whose configuration tells the sizes.
        batch: The batch of one tile.
        memory_budget: The budget in bytes for the activations of a pass.
    """
    items, tokens = _shape(batch)
    config = getattr(model, "config", None)
    hidden = _size(config, ("hidden_size", "n_embd", "d_model"), 1024)
    widest = _size(config, ("intermediate_size", "n_inner", "d_ff"), 4 * hidden)
    heads = _size(config, ("num_attention_heads", "n_head"), 16)
    per_token = 4 * (LIVE_ACTIVATIONS * hidden + 2 * widest + 2 * heads * tokens)
    if "option_mask" in batch:
        per_token += 4 * _size(config, ("vocab_size",), 0)
    return max(1, memory_budget // max(1, items * tokens * per_token))


def _shape(batch: Batch) -> tuple[int, int]:
    """The number of items and of tokens; an image counts its pixels in patches of 16."""
    if "input_ids" in batch:
        return int(batch["input_ids"].shape[0]), int(batch["input_ids"].shape[1])
    first = next(iter(batch.values()))
    return int(first.shape[0]), max(1, int(first[0].numel()) // 768)


def _size(config: Any, names: tuple[str, ...], default: int) -> int:
    values = (getattr(config, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, int)), default)
