"""A LoRA that is trained already, put into a base model from its PEFT folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayeslora_pyro.adapters.adapter import Adapter
from bayeslora_pyro.adapters.bases import unchanged_on_failure
from bayeslora_pyro.adapters.folders import PEFT_CONFIG, PEFT_TENSORS, read_config

__all__ = ["load_lora"]

Shapes = dict[str, tuple[int, ...]]


def load_lora(base_model: nn.Module, folder: Path, *, task_type: str) -> PeftModel:
    """Puts a trained LoRA into a base model, with the head that was trained beside it.

    Args:
        base_model: The base model; changed in place, unless something is wrong.
        folder: A PEFT folder, `adapter_config.json` and `adapter_model.safetensors`.
        task_type: PEFT's name of what it should predict.

    Raises:
        FileNotFoundError: If it is no such folder.
        ValueError: If the folder is damaged, holds no plain LoRA or one for another task, or does not fit the base
            model: a tensor is missing, left over, or of another shape.
    """
    for name in (PEFT_CONFIG, PEFT_TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no PEFT folder, as it has no {name}: give one that has a trained LoRA."
            )
    config = read_config(folder)
    _check_config(config, task_type)
    tensors = _read(folder / PEFT_TENSORS)
    config.inference_mode = False  # or the head would be no parameter of a model
    with unchanged_on_failure(base_model), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the base model goes by another name here
        model = _with_layers(base_model, config)
        Adapter(model)  # complains of layers that are no plain LoRA
        _check_shapes(
            _shapes(tensors), _shapes(get_peft_model_state_dict(model, save_embedding_layers=False))
        )
        set_peft_model_state_dict(model, tensors)
    return model


def _with_layers(base_model: Any, config: PeftConfig) -> PeftModel:
    """Puts fresh LoRA layers into a base model."""
    try:
        return cast(PeftModel, get_peft_model(base_model, config))
    except ValueError as error:
        wanted: Any = getattr(config, "target_modules", None)
        names = wanted if isinstance(wanted, str) else ", ".join(sorted(wanted or ()))
        raise ValueError(
            f"It is of another base model, one with linear modules {names}: give that one."
        ) from error


def _check_config(config: PeftConfig, task_type: str) -> None:
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"It has no LoRA layers, but those of {config.peft_type}: give an adapter whose peft_type is LORA."
        )
    if config.task_type != task_type:
        raise ValueError(
            f"Its task_type is {config.task_type}, and these data need an adapter for {task_type}."
        )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}): restore it from a copy, or download it again."
        ) from error


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_shapes(found: Shapes, wanted: Shapes) -> None:
    """Complains of the first tensor that has no place, or a place that has no tensor."""
    for name in sorted(found.keys() | wanted.keys()):
        own, needed = found.get(name), wanted.get(name)
        if own == needed:
            continue
        short = name.removeprefix("base_model.model.")
        if own is None or needed is None:
            raise ValueError(
                f"It is of another base model: {short!r} is {'missing in it' if own is None else 'in it alone'}. "
                "Give the base model that it was trained on."
            )
        raise ValueError(
            f"Its {short!r} is {_sizes(own)}, and should be {_sizes(needed)}: give the base model, and data with as "
            "many classes, that it was trained on."
        )


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
