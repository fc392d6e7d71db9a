"""How many draws fit into one forward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from bayeslora_pyro.types import Batch, main_input, vocabulary_layer

__all__ = ["draws_per_pass"]

LIVE_ACTIVATIONS = 6
"""Tensors of hidden size that a transformer layer holds at once beside its widest one, without gradients."""

LIVE_LOGITS = 3
"""Copies of the logits over a vocabulary: the model's, those in float32, and those that are being normalised."""

BYTES = 4

DEFAULT_BUDGET = 2**28
BUDGETS = {"cpu": 2**25}
"""Bytes for the activations of a pass, by kind of device: a CPU slows down where they outgrow its caches.

Sixteen draws of MiniLM on 16 x 64 tokens took 0.97 times as long as sixteen plain passes one by one, 1.05 times two by
two and 1.18 times four by four (two threads of an AMD EPYC).
"""


def draws_per_pass(
    model: nn.Module,
    batch: Batch,
    memory_budget: int | None = None,
    *,
    num_logits: int | None = None,
    held: int = 0,
    draw: int = 0,
) -> int:
    """Estimates how many tiles of a batch fit into a budget; one at least.

    Args:
        model: The language model, whose configuration tells the sizes.
        batch: The batch of one tile.
        memory_budget: The budget in bytes; by default one that suits the device.
        num_logits: For how many tokens a causal model keeps its logits; by default for all.
        held: How many bytes of the budget are taken already.
        draw: How many bytes the factors of a draw take, where those of a pass are made for it.
    """
    items, tokens = _shape(batch)
    config = getattr(model, "config", None)
    hidden = _size(config, ("hidden_size", "n_embd", "d_model"), 1024)
    widest = _size(config, ("intermediate_size", "n_inner", "d_ff"), 4 * hidden)
    heads = _size(config, ("num_attention_heads", "n_head"), 16)
    item = tokens * (LIVE_ACTIVATIONS * hidden + 2 * widest + 2 * heads * tokens)
    if vocabulary_layer(model) is not None:
        item += LIVE_LOGITS * (num_logits or tokens) * _size(config, ("vocab_size",), 0)
    budget = _default_budget(batch) if memory_budget is None else memory_budget
    return max(1, (budget - held) // max(1, BYTES * items * item + draw))


def _default_budget(batch: Batch) -> int:
    device = next(value.device.type for value in batch.values() if isinstance(value, Tensor))
    return BUDGETS.get(device, DEFAULT_BUDGET)


def _shape(batch: Batch) -> tuple[int, int]:
    """The number of items and of tokens; an image counts its pixels in patches of 16."""
    first = main_input(batch)
    if "input_ids" in batch:
        return int(first.shape[0]), int(first.shape[1])
    return int(first.shape[0]), max(1, int(first[0].numel()) // 768)


def _size(config: Any, names: tuple[str, ...], default: int) -> int:
    values = (getattr(config, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, int)), default)
