"""LoRA layers for a base model, made without touching the global random state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from bayeslora_pyro.adapters.bases import without_pefts_notes
from bayeslora_pyro.isolation import set_seed

__all__ = ["add_lora"]


def add_lora(
    base_model: nn.Module,
    *,
    task_type: str,
    r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    seed: int = 0,
) -> PeftModel:
    """Puts LoRA layers into a base model.

    Args:
        base_model: The base model; changed in place.
        task_type: PEFT's name of what it predicts: `"SEQ_CLS"` keeps its head trainable, `"CAUSAL_LM"` has none.
        r: The rank.
        lora_alpha: The scaling is `lora_alpha / r`.
        lora_dropout: The dropout of the inputs of LoRA, in train mode.
        target_modules: The names of the adapted modules; None for those usual for the architecture.
        seed: The seed of the factors A.

    Raises:
        ValueError: If no module has such a name, or the usual ones are not known; the message lists candidates.
    """
    targets = None if target_modules is None else list(target_modules)
    config = LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=targets, task_type=task_type
    )
    names = {name.rpartition(".")[2] for name, module in base_model.named_modules() if _is_linear(module)}
    if missing := sorted(set(targets or []) - names):
        raise ValueError(f"target_modules has {missing[0]!r}: the base model has {', '.join(sorted(names))}")
    model: Any = base_model  # PEFT asks for a PreTrainedModel and takes any module
    with torch.random.fork_rng(), without_pefts_notes():
        set_seed(seed)
        try:
            return cast(PeftModel, get_peft_model(model, config))
        except ValueError as error:
            raise ValueError(f"{error} The base model has {', '.join(sorted(names))}.") from error


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)
