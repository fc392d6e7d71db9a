"""Models and guides as JSON: of what parts they are made, and making them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bayeslora_pyro.guides import GUIDES, Guide
from bayeslora_pyro.models import LIKELIHOODS, PRIORS, BayesianLora

__all__ = ["build_guide", "build_model", "describe_guide", "describe_model"]

Description = dict[str, Any]


def describe_model(model: BayesianLora) -> Description:
    """Describes a model, beside its PEFT model, in JSON values."""
    return {
        "priors": {key: _describe(prior, PRIORS) for key, prior in model.priors_by_key().items()},
        "likelihood": _describe(model.likelihood, LIKELIHOODS),
        "num_data": model.num_data,
        "adapter_name": model.adapter.adapter_name,
        "seed": model.seed,
    }


def describe_guide(guide: Guide) -> Description:
    """Describes a guide, beside its model, in JSON values."""
    return _describe(guide, GUIDES)


def _describe(part: Any, table: Mapping[str, type[Any]]) -> Description:
    """A part by its name in a table and its arguments; by its class alone where it is the user's own."""
    name = next((name for name, kind in table.items() if type(part) is kind), None)
    description: Description = {"type": name, "class": type(part).__qualname__}
    try:
        return description | {"config": json.loads(json.dumps(part.config()))}
    except TypeError:  # an argument that only its owner can make again
        return description | {"type": None}


def build_model(
    peft_model: nn.Module, description: Description, prior: Any = None, likelihood: Any = None
) -> BayesianLora:
    """Makes a model again.

    Args:
        peft_model: Its PEFT model.
        description: What :func:`describe_model` returned.
        prior: The prior, where it is not one of the library's.
        likelihood: The likelihood, where it is not one of the library's.

    Raises:
        ValueError: If a part is not one of the library's and is not given either.
    """
    if prior is None:
        prior = {key: _build("prior", part, PRIORS) for key, part in description["priors"].items()}
    return BayesianLora(
        peft_model,
        prior,
        _build("likelihood", description["likelihood"], LIKELIHOODS) if likelihood is None else likelihood,
        description["num_data"],
        adapter_name=description["adapter_name"],
        seed=description["seed"],
    )


def build_guide(
    model: BayesianLora, description: Description, guide: Callable[[BayesianLora], Guide] | None = None
) -> Guide:
    """Makes a guide again.

    Args:
        model: Its model.
        description: What :func:`describe_guide` returned.
        guide: A function from the model to the guide, where it is not one of the library's.

    Raises:
        ValueError: If the guide is not one of the library's and is not given either.
    """
    built: Guide = _build("guide", description, GUIDES, model) if guide is None else guide(model)
    return built


def _build(argument: str, part: Description, table: Mapping[str, type[Any]], *args: Any) -> Any:
    """Makes a part again; nothing but the names of a table can be made."""
    name = part.get("type")
    if not isinstance(name, str) or name not in table:
        raise ValueError(
            f"The {argument} of this posterior is {name or part.get('class')!r}, which is not one of the library's: "
            f"give it to load as {argument}=…."
        )
    return table[name](*args, **part["config"])
