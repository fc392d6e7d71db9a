"""How probable each draw finds texts that are there already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeslora_pyro.adapters import make_operators, varying
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.tiling import draws_per_pass
from bayeslora_pyro.types import Weights

__all__ = ["score"]


def score(
    model: BayesianLora,
    weights: Weights,
    prompts: Mapping[str, Tensor],
    tokens: Tensor,
    mask: Tensor,
    memory_budget: int | None = None,
) -> Tensor:
    """The log-probability under each draw of each token that follows the prompts.

    Args:
        model: The model.
        weights: The draws of the factors by stack name, `(S, L, d_o, d_i)`.
        prompts: `input_ids` and `attention_mask`, padded on the left. Shapes `(prompt, token)`.
        tokens: K texts for each prompt. Shape `(K, prompt, token)`.
        mask: Which of their tokens count. Shape `(K, prompt, token)`.
        memory_budget: About how many bytes the activations of one pass may take.

    Returns:
        The log-probabilities, zero where a token does not count. Shape `(S, K, prompt, token)`.
    """
    num_draws, random = len(next(iter(weights.values()))), varying(weights)
    if not any(map(any, random.values())):  # then the draws are one, and agree to the last digit
        weights = {name: values[:1] for name, values in weights.items()}
    each = [
        _score(model, weights, random, prompts, *pair, memory_budget)
        for pair in zip(tokens, mask, strict=True)
    ]
    return torch.stack(each, 1).masked_fill(~mask, 0).expand(num_draws, *tokens.shape)


def _score(
    model: BayesianLora,
    weights: Weights,
    random: Mapping[str, list[bool]],
    prompts: Mapping[str, Tensor],
    tokens: Tensor,
    mask: Tensor,
    memory_budget: int | None,
) -> Tensor:
    """The same for one text a prompt. Shape `(S, prompt, token)`."""
    adapter, head, (rows, length) = model.adapter, model.head_values(), tokens.shape
    attended = torch.cat([prompts["attention_mask"], mask.to(prompts["attention_mask"])], dim=-1)
    batch = {
        "input_ids": torch.cat([prompts["input_ids"], tokens], dim=-1),
        "attention_mask": attended,
        "position_ids": (attended.cumsum(-1) - 1).clamp(min=0),  # the padding is on the left
    }
    arguments: dict[str, Any] = {"logits_to_keep": length + 1}
    prefix = adapter.shared_prefix(weights, batch, head, random=random, **arguments)
    held = 0 if prefix is None else prefix.num_bytes
    size = draws_per_pass(adapter.peft_model, batch, memory_budget, num_logits=length + 1, held=held)
    parts = []
    for first in range(0, len(next(iter(weights.values()))), size):
        chunk = {name: values[first : first + size] for name, values in weights.items()}
        num_tiles = len(next(iter(chunk.values())))
        operators = make_operators(chunk, random=random, rows=num_tiles * rows)
        logits = adapter.run_with(chunk, batch, head, operators=operators, prefix=prefix, **arguments).logits
        expected = logits[:, -length - 1 : -1]
        expected = expected.to(torch.promote_types(expected.dtype, torch.float32)).unflatten(0, (-1, rows))
        index = tokens.expand(len(expected), rows, length).unsqueeze(-1)
        parts.append(expected.log_softmax(-1).gather(-1, index).squeeze(-1))
    return torch.cat(parts)
