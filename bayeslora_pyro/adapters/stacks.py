"""Finding the LoRA layers of a PEFT model, and grouping their factors by role and shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import MultiheadAttention, ParamWrapper
from torch import nn

from bayeslora_pyro.types import FactorStack, Role

__all__ = [
    "activated",
    "active_adapter",
    "as_peft_model",
    "check_unmerged",
    "find_layers",
    "leaf",
    "leaves",
    "stack_factors",
]


def as_peft_model(model: nn.Module) -> PeftModel:
    """The model itself; raises a `TypeError` if it is no PEFT model."""
    if not isinstance(model, PeftModel):
        raise TypeError(
            f"peft_model is a {type(model).__name__}, and no PeftModel: "
            "wrap it first, get_peft_model(base_model, LoraConfig(…))."
        )
    return model


def active_adapter(peft_model: PeftModel) -> str:
    """Names the one adapter that is active."""
    active = peft_model.active_adapters
    if len(active) != 1:
        raise ValueError(
            f"adapter_name must be given: the PEFT model has {len(active)} active adapters ({', '.join(active)})."
        )
    return str(active[0])


@contextmanager
def activated(peft_model: PeftModel, adapter_name: str) -> Iterator[None]:
    """Makes one adapter the only active one, and enabled, without touching what requires a gradient."""
    wanted = {"_active_adapter": [adapter_name], "_disable_adapters": False}
    modules = [vars(module) for module in peft_model.modules() if "_active_adapter" in vars(module)]
    before = [{name: own[name] for name in wanted if name in own} for own in modules]
    try:
        for own, old in zip(modules, before, strict=True):
            own.update({name: wanted[name] for name in old})
        yield
    finally:
        for own, old in zip(modules, before, strict=True):
            own.update(old)


def leaves(layer: LoraLayer, role: Role) -> nn.ModuleDict:
    """Returns the factors of one role of a layer, by adapter name."""
    return cast(nn.ModuleDict, getattr(layer, f"lora_{role}"))


def leaf(layer: LoraLayer, role: Role, adapter_name: str) -> nn.Linear:
    """Returns one factor of a layer."""
    return cast(nn.Linear, leaves(layer, role)[adapter_name])


def find_layers(peft_model: nn.Module, adapter_name: str) -> dict[str, LoraLayer]:
    """Finds the LoRA layers of one adapter, by their module names within the base model.

    Raises:
        ValueError: If there are none, with the modules that could have been targeted; or if one of them does not
            compute `B A x` with plain linear maps.
    """
    modules = [(_base_name(name), module) for name, module in peft_model.named_modules()]
    layers = {name: module for name, module in modules if isinstance(module, LoraLayer)}
    chosen = {name: layer for name, layer in layers.items() if _has_adapter(layer, adapter_name)}
    if not chosen:
        raise ValueError(_nothing_found(adapter_name, layers, modules))
    for name, layer in chosen.items():
        _check_layer(name, layer, adapter_name)
    check_unmerged(chosen)
    return chosen


def _base_name(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _has_adapter(layer: LoraLayer, adapter_name: str) -> bool:
    return adapter_name in layer.lora_A or adapter_name in layer.lora_embedding_A


def _check_layer(name: str, layer: LoraLayer, adapter_name: str) -> None:
    adds_to_weight = isinstance(layer, MultiheadAttention | ParamWrapper)
    if (
        adds_to_weight
        or adapter_name not in layer.lora_A
        or type(leaf(layer, "A", adapter_name)) is not nn.Linear
    ):
        raise ValueError(
            f"Layer {name!r} is no linear layer: its LoRA factors cannot be stacked. Leave it out of the LoraConfig."
        )
    variant = layer.lora_variant.get(adapter_name) if hasattr(layer, "lora_variant") else None
    if variant is not None:
        raise ValueError(
            f"Layer {name!r} uses the LoRA variant {type(variant).__name__}, which does not compute B A x. "
            "Build the PEFT model with a plain LoraConfig (use_dora=False)."
        )
    if leaf(layer, "B", adapter_name).bias is not None:
        raise ValueError(
            f"Layer {name!r} has a bias on its factor B. Build the PEFT model with lora_bias=False."
        )


def check_unmerged(layers: Mapping[str, LoraLayer]) -> None:
    """Refuses layers with an adapter merged into the base, where factors have no effect."""
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise ValueError(
            f"Layer {merged[0]!r} has its adapter merged into the base. Call peft_model.unmerge_adapter()."
        )


def _nothing_found(
    adapter_name: str, layers: dict[str, LoraLayer], modules: list[tuple[str, nn.Module]]
) -> str:
    if layers:
        names = sorted({adapter for layer in layers.values() for adapter in layer.lora_A})
        return f"adapter_name={adapter_name!r} has no LoRA layer. The PEFT model has the adapters {', '.join(names)}."
    candidates = sorted(
        {name.rpartition(".")[2] for name, module in modules if isinstance(module, nn.Linear)}
    )
    return (
        "The PEFT model has no LoRA layer. Build it with get_peft_model(base_model, LoraConfig(target_modules=[…])); "
        f"modules that can be targeted: {', '.join(candidates)}."
    )


def stack_factors(
    layers: dict[str, LoraLayer], adapter_name: str, group_of: Callable[[Role, str], Hashable] | None = None
) -> tuple[FactorStack, ...]:
    """Groups the factors of the layers by role and shape, in the order in which they first occur.

    Args:
        layers: The LoRA layers by name.
        adapter_name: The name of the adapter.
        group_of: From the role and the layer of a factor to what else the factors of one stack have in common; the
            second stack of a role and a shape is then called `A_8x384_2`, and so on.
    """
    groups: dict[tuple[Role, tuple[int, int]], dict[Hashable, list[str]]] = defaultdict(dict)
    roles: tuple[Role, Role] = ("A", "B")
    for role in roles:
        for name, layer in layers.items():
            d_o, d_i = leaf(layer, role, adapter_name).weight.shape
            group = None if group_of is None else group_of(role, name)
            groups[role, (d_o, d_i)].setdefault(group, []).append(name)
    return tuple(
        FactorStack(f"{role}_{shape[0]}x{shape[1]}{suffix}", role, shape, tuple(names))
        for (role, shape), parts in groups.items()
        for suffix, names in zip(
            ("", *(f"_{i}" for i in range(2, len(parts) + 1))), parts.values(), strict=True
        )
    )
