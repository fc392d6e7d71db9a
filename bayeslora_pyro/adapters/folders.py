"""Ordinary PEFT folders: writing factors as one, loading one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from bayeslora_pyro.adapters.adapter import Adapter
from bayeslora_pyro.adapters.bases import check_base, load_base, without_pefts_notes
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.types import Weights

__all__ = ["PEFT_CONFIG", "PEFT_TENSORS", "adapter_state", "load_peft_model", "read_config", "write_folder"]

PEFT_CONFIG = "adapter_config.json"
PEFT_TENSORS = "adapter_model.safetensors"


def adapter_state(
    adapter: Adapter, weights: Weights, head: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Returns what `adapter_model.safetensors` holds for these factors, by PEFT's names.

    Args:
        adapter: The adapter.
        weights: The factors by stack name, `(L, d_o, d_i)`.
        head: Values of parameters outside LoRA, by their names in the PEFT model.
    """
    name = adapter.adapter_name
    state = get_peft_model_state_dict(adapter.peft_model, adapter_name=name, save_embedding_layers=False)
    values = {f"base_model.model.{key}": value for key, value in _by_leaf(adapter, weights).items()}
    values |= {key.replace(f".modules_to_save.{name}.", "."): value for key, value in (head or {}).items()}
    if unknown := [key for key in values if key not in state]:
        raise ValueError(
            f"PEFT does not save {unknown[0]!r}: put its module into modules_to_save of the LoraConfig."
        )
    return {key: values.get(key, value).detach().cpu().contiguous().clone() for key, value in state.items()}


def _by_leaf(adapter: Adapter, weights: Weights) -> dict[str, Tensor]:
    return {
        f"{layer}.lora_{stack.role}.weight": weight
        for stack in adapter.stacks
        for layer, weight in zip(stack.adapters, weights[stack.name], strict=True)
    }


def write_folder(adapter: Adapter, weights: Weights, head: Mapping[str, Tensor], folder: Path) -> None:
    """Writes an ordinary PEFT folder, which `PeftModel.from_pretrained` loads.

    Args:
        adapter: The adapter whose configuration the folder gets.
        weights: The factors by stack name, `(L, d_o, d_i)`.
        head: Values of parameters outside LoRA, by their names in the PEFT model.
        folder: Where to write; it has to exist.
    """
    config = copy.deepcopy(adapter.peft_model.peft_config[adapter.adapter_name])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(adapter_state(adapter, weights, head), folder / PEFT_TENSORS, {"format": "pt"})


def read_config(folder: Path) -> PeftConfig:
    """Reads the configuration of a PEFT folder.

    Raises:
        ValueError: If it is damaged, or has PEFT import modules that it names.
    """
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{folder / PEFT_CONFIG} is damaged: restore it from a copy, or fit again."
        ) from error
    if getattr(config, "megatron_config", None) is not None:
        raise ValueError(
            f"{folder / PEFT_CONFIG} has a megatron_config, with which PEFT imports what it names: remove it."
        )
    return config


def load_peft_model(
    folder: Path, base_model: nn.Module | None, adapter_name: str, description: Mapping[str, Any]
) -> nn.Module:
    """Loads a PEFT folder over a base model, or over the one that the folder names.

    Args:
        folder: The folder.
        base_model: The base model; by default the one that the folder names.
        adapter_name: The name that the adapter gets.
        description: What the base model should be, from :func:`describe_base`.

    Raises:
        ValueError: If the folder is damaged, or the base model is another one or carries LoRA layers already.
    """
    config = read_config(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"{folder / PEFT_CONFIG} is of {config.peft_type}, and should be of LORA: fit again."
        )
    base = load_base(config, description["settings"]) if base_model is None else base_model
    check_base(base, description)
    with without_pefts_notes(), local_rng("adapter", adapter_name):  # PEFT draws factors before it reads them
        return cast(
            nn.Module,
            PeftModel.from_pretrained(base, str(folder), adapter_name=adapter_name, is_trainable=True),
        )
