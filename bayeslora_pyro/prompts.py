"""Prompts as a decoder takes them, and its tokens as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bayeslora_pyro.types import Batch

__all__ = ["Prompts", "Special", "decoded", "encoded", "special_tokens"]

Prompts: TypeAlias = Sequence[str] | Batch
"""Texts, or `input_ids` and `attention_mask`, padded on either side. Shapes `(prompt, token)`."""

Special: TypeAlias = tuple[int, tuple[int, ...]]
"""The token that pads, and those that end a text."""


def special_tokens(base_model: Any, tokenizer: Any = None) -> Special:
    """The token that pads and those that end a text, as the base model and the tokenizer have them."""
    sources = (getattr(base_model, "generation_config", None), base_model.config, tokenizer)
    ends: list[int] = []
    for source in sources:
        given = getattr(source, "eos_token_id", None)
        ends += given if isinstance(given, list) else [] if given is None else [given]
    pads = (getattr(source, "pad_token_id", None) for source in sources)
    pad = next((pad for pad in pads if pad is not None), ends[0] if ends else 0)
    return int(pad), tuple(dict.fromkeys(ends))


def encoded(prompts: Prompts, tokenizer: Any, pad: int) -> dict[str, Tensor]:
    """Tokenises prompts, and pads them on the left, where a decoder bears it.

    Raises:
        ValueError: If there is nothing to begin with.
    """
    if isinstance(prompts, Sequence):
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts should be a list of one text or more, and is {prompts!r}.")
        if tokenizer is None:
            raise ValueError("tokenizer is missing: texts need that of the base model.")
        rows = [torch.as_tensor(tokenizer(prompt)["input_ids"], dtype=torch.long) for prompt in prompts]
        ids = _padded(rows, pad)
        mask = _padded([torch.ones_like(row) for row in rows], 0)
    else:
        ids = prompts["input_ids"]
        mask = torch.ones_like(ids) if prompts.get("attention_mask") is None else prompts["attention_mask"]
        order = mask.argsort(dim=-1, stable=True)
        ids, mask = ids.gather(-1, order), mask.gather(-1, order)
    if not bool(mask.any(-1).all()):
        raise ValueError(f"prompts[{int(mask.any(-1).int().argmin())}] has no token to begin with.")
    return {"input_ids": ids, "attention_mask": mask}


def decoded(tokens: Tensor, mask: Tensor, tokenizer: Any) -> tuple[str, ...]:
    """The texts of tokens, without special ones. Shapes `(text, token)`."""
    rows = zip(tokens.cpu(), mask.cpu(), strict=True)
    return tuple(tokenizer.decode(row[kept].tolist(), skip_special_tokens=True) for row, kept in rows)


def _padded(rows: Sequence[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        list(rows), batch_first=True, padding_value=value, padding_side="left"
    )
