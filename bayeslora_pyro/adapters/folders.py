"""Ordinary PEFT folders: writing factors as one, loading one, telling base models apart."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from peft import AutoPeftModel, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from bayeslora_pyro.adapters.adapter import Adapter
from bayeslora_pyro.types import Weights

__all__ = ["adapter_state", "fingerprint", "load_peft_model", "write_folder"]


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
    save_file(adapter_state(adapter, weights, head), folder / "adapter_model.safetensors", {"format": "pt"})


def load_peft_model(folder: Path, base_model: nn.Module | None, adapter_name: str) -> nn.Module:
    """Loads a PEFT folder over a base model, or over the one that the folder names.

    Raises:
        ValueError: If the base model already carries LoRA layers.
    """
    if base_model is None:
        loaded: nn.Module = AutoPeftModel.from_pretrained(str(folder), adapter_name=adapter_name)
        return loaded
    if isinstance(base_model, PeftModel) or any(
        isinstance(module, LoraLayer) for module in base_model.modules()
    ):
        raise ValueError(
            "base_model already carries LoRA layers: give the base model as it was before get_peft_model."
        )
    return cast(nn.Module, PeftModel.from_pretrained(base_model, str(folder), adapter_name=adapter_name))


def fingerprint(adapter: Adapter) -> str:
    """A digest of the adapted layers: their names, shapes, and some of their frozen weights.

    Weights are compared in bfloat16, so that it does not matter in which precision a base model is loaded; those of
    quantised layers are left out.
    """
    digest = hashlib.sha256()
    for stack in adapter.stacks:
        digest.update(repr((stack.name, stack.adapters)).encode())
    for name in sorted({name for stack in adapter.stacks for name in stack.adapters}):
        weight = adapter.frozen_weight(name)
        if weight is not None:
            digest.update(repr(tuple(weight.shape)).encode())
            sample = weight.detach().flatten()[:: max(1, weight.numel() // 64)][:64]
            digest.update(sample.to("cpu", torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()
