"""Telling base models apart, and loading the one that a folder names."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from bayeslora_pyro.adapters.adapter import Adapter
from bayeslora_pyro.adapters.fingerprints import fingerprint, sample

__all__ = ["check_base", "describe_base", "load_base", "unchanged_on_failure", "without_pefts_notes"]

PEFTS_NOTES = (
    ".is_gradient_checkpointing. is deprecated",  # of peft 0.21 to transformers 5
    "Already found a .peft_config. attribute",  # which peft 0.17 leaves behind on unloading
)

ROUNDING = 2.0**-8
"""How much a weight may change, relative to itself, when it is rounded to bfloat16 or float16."""

SETTINGS = ("num_labels", "pad_token_id")
"""What a base model is loaded with, beside its name."""

CLASSES: dict[str | None, Any] = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "FEATURE_EXTRACTION": AutoModel,
}
"""The class of base model by PEFT's name of the task."""


@contextmanager
def without_pefts_notes() -> Iterator[None]:
    """Keeps back what PEFT warns of that is no business of the user's."""
    with warnings.catch_warnings():
        for message in PEFTS_NOTES:
            warnings.filterwarnings("ignore", message)
        yield


def describe_base(adapter: Adapter) -> dict[str, Any]:
    """Describes a base model in JSON: shape and a few frozen weights of each adapted layer.

    Quantised layers go without weights.
    """
    layers: dict[str, Any] = {}
    for name in sorted({name for stack in adapter.stacks for name in stack.adapters}):
        layers[name] = fingerprint(adapter.base_layer(name))
    config = getattr(adapter.peft_model.get_base_model(), "config", None)
    settings = {name: getattr(config, name, None) for name in SETTINGS}
    return {"layers": layers, "settings": {n: v for n, v in settings.items() if isinstance(v, int)}}


def check_base(base_model: nn.Module, description: Mapping[str, Any]) -> None:
    """Refuses a base model that is not the described one, in whatever precision both are.

    Raises:
        ValueError: If it has LoRA layers already, or other weights in the layers that are adapted.
    """
    if isinstance(base_model, PeftModel) or any(isinstance(part, LoraLayer) for part in base_model.modules()):
        raise ValueError(
            "base_model already carries LoRA layers: give the base model as it was before get_peft_model."
        )
    modules = dict(base_model.named_modules())
    for name, known in description["layers"].items():
        weight = getattr(modules.get(name), "weight", None)
        if name not in modules or (known is not None and not _is_same(weight, *known)):
            raise ValueError(
                f"base_model is not the one that the posterior was fitted on: its layer {name!r} is "
                f"{'another' if name in modules else 'missing'}."
            )


def _is_same(weight: Any, shape: list[int], known: list[float]) -> bool:
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or list(weight.shape) != shape:
        return False
    pairs = zip(sample(weight), known, strict=True)
    return all(abs(a - b) <= ROUNDING * max(abs(a), abs(b)) + 1e-7 for a, b in pairs)


def load_base(config: PeftConfig, settings: Mapping[str, int]) -> nn.Module:
    """Loads the base model that a PEFT configuration names.

    Raises:
        ValueError: If it names none, or not of which kind.
    """
    name, task = config.base_model_name_or_path, config.task_type
    if not name or task not in CLASSES:
        raise ValueError(
            f"The folder does not say what to load: its base model is {name!r}, for the task {task!r}. "
            "Give the base model itself, as base_model."
        )
    known = {key: settings[key] for key in SETTINGS if key in settings and task == "SEQ_CLS"}
    return cast(nn.Module, CLASSES[task].from_pretrained(name, **known))


@contextmanager
def unchanged_on_failure(module: nn.Module | None) -> Iterator[None]:
    """Gives a module its parts and attributes back if an exception leaves the context."""
    parts = [] if module is None else list(module.modules())
    before = [(part, dict(vars(part)), dict(part._modules)) for part in parts]
    learned = [(p, p.requires_grad) for part in parts for p in part.parameters(recurse=False)]
    try:
        yield
    except BaseException:
        for part, attributes, children in before:
            vars(part).clear()
            vars(part).update(attributes)
            part._modules.clear()
            part._modules.update(children)
        for parameter, requires_grad in learned:
            parameter.requires_grad_(requires_grad)
        raise
