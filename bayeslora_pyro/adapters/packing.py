"""Rows in which several continuations of one text lie behind it, each to be read as if the others were not there."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.isolation import training_modes
from bayeslora_pyro.types import Batch

__all__ = ["check_packed", "packs", "seen_tokens"]

IMPLEMENTATIONS = ("eager", "sdpa")
"""The implementations of attention in `transformers` that take a mask of their caller's."""

TOLERANCE = 0.05
"""Up to which share of their spread logits may differ by rounding: a few hundredths in half precision."""


def packs(base_model: nn.Module) -> bool:
    """Whether a decoder reads a packed row as it reads row by row, which is tried on two rows of six tokens.

    It takes positions and a mask, but may have layers that heed neither, such as a recurrence over tokens.
    """
    if _why_not(base_model) is not None:
        return False
    device = next(base_model.parameters()).device
    option = torch.tensor([[-1, -1, -1, 0, 0, 0, 1, 1, 1]], device=device)
    batch = {
        "input_ids": torch.arange(1, 10, device=device).unsqueeze(0),
        "position_ids": torch.tensor([[0, 1, 2, 3, 4, 5, 3, 4, 5]], device=device),
        "attention_mask": torch.ones_like(option),
    }
    alone = batch["input_ids"][0][torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 6, 7, 8]], device=device)]
    with training_modes(base_model, mode=lambda _: False), torch.no_grad():
        packed = base_model(**batch | {"attention_mask": seen_tokens(base_model, batch | {"option": option})})
        expected = base_model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[:, 3:]
    found = packed.logits[0, 3:].unflatten(0, (2, 3))
    spread = expected - expected.mean(-1, keepdim=True)
    return bool((found - expected).norm() <= TOLERANCE * spread.norm())


def check_packed(base_model: nn.Module, batch: Batch) -> None:
    """Raises a `ValueError` if a language model would read a packed batch in another way than row by row."""
    if (why := _why_not(base_model)) is not None:
        raise ValueError(f"The batch is packed, and {why}: make the loader with form='options'.")
    window = getattr(getattr(base_model, "config", None), "sliding_window", None)
    if isinstance(window, int) and (length := int(batch["position_ids"].max()) + 1) > window:
        raise ValueError(
            f"The batch is packed and has a text of {length} tokens, of which the language model sees the last "
            f"{window} only: make the loader with form='options', or with a max_length of {window}."
        )


def seen_tokens(base_model: nn.Module, batch: Batch) -> Tensor:
    r"""The mask of attention of a packed batch: each token sees what comes before it in its own row.

    That is itself, the tokens that all options share, and those of its own option,

    .. math:: j \le i \;\wedge\; (o_j = o_i \;\vee\; o_j = -1)

    Args:
        base_model: The language model.
        batch: `option` and `attention_mask`. Shapes `(rows, tokens)`.

    Returns:
        The mask, in the form that the model's attention takes. Shape `(rows, 1, tokens, tokens)`.
    """
    option, real = batch["option"], batch["attention_mask"].bool()
    tokens = option.shape[-1]
    before = torch.ones(tokens, tokens, dtype=torch.bool, device=option.device).tril()
    seen = (option[:, None, :] == option[:, :, None]) | (option[:, None, :] == -1)
    seen = seen & before & real[:, None, :]
    itself = torch.eye(tokens, dtype=torch.bool, device=option.device)
    seen |= itself  # or padding would see nothing, which makes NaN of it
    if _attention(base_model) == "sdpa":
        return seen.unsqueeze(1)
    dtype = next(base_model.parameters()).dtype
    dtype = dtype if dtype.is_floating_point else torch.float32
    least = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype, device=option.device).masked_fill(~seen, least).unsqueeze(1)


def _why_not(base_model: nn.Module) -> str | None:
    if "position_ids" not in inspect.signature(base_model.forward).parameters:
        return f"{type(base_model).__name__} takes no position_ids"
    if _attention(base_model) not in IMPLEMENTATIONS:
        return (
            f"attention is computed by {_attention(base_model)!r}, which takes no mask but for padding (of "
            f"{' and '.join(IMPLEMENTATIONS)}, each does)"
        )
    return None


def _attention(base_model: nn.Module) -> Any:
    return getattr(getattr(base_model, "config", None), "_attn_implementation", None)
