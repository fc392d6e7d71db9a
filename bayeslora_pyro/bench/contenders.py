"""The methods as the benchmark runs them, and what each is made of."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from inspect import signature
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.bench.tiers import BASE
from bayeslora_pyro.methods import METHODS, Recipe
from bayeslora_pyro.models import Choice, Likelihood
from bayeslora_pyro.parts import describe_guide, describe_model
from bayeslora_pyro.tasks import TASKS

__all__ = ["describe", "fit_key", "make_recipe", "num_draws_of"]


def make_recipe(
    cell: Cell, protocol: Protocol, peft_model: nn.Module, likelihood: Likelihood | str, num_data: int
) -> Recipe:
    """Makes the method of a cell ready, with the settings of the fit that the protocol has.

    Args:
        cell: The cell.
        protocol: The protocol.
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
    """
    build: Any = METHODS["lora" if cell.method == BASE else cell.method]
    own = {"batch_size": protocol.batch_size} if "batch_size" in signature(build).parameters else {}
    recipe: Recipe = build(peft_model, likelihood, num_data, seed=cell.seed, **own)
    config = recipe.config
    settings: dict[str, Any] = {
        name: getattr(config, name) * protocol.rate_scale
        for name in ("learning_rate", "flow_learning_rate", "head_learning_rate")
    }
    settings |= {"num_steps": protocol.num_steps, "warmup": protocol.warmup}
    settings |= {} if protocol.schedule is None else {"schedule": protocol.schedule}
    return replace(recipe, config=config.replace(**settings))


def num_draws_of(recipe: Recipe, most: int) -> int:
    """How many draws are kept: one of a point, one of each member of an ensemble, and `most` of all others."""
    if recipe.num_members > 1:
        return math.ceil(recipe.num_draws / recipe.num_members) * recipe.num_members
    return 1 if recipe.num_draws == 1 else most


def describe(cell: Cell, protocol: Protocol) -> dict[str, Any]:
    """What the method of a cell is made of, in JSON values: by it one knows whether a cell is still that method.

    It is read off the method made ready for a base model of a few numbers, and so costs nothing.
    """
    with torch.device("cpu"):
        peft_model = add_lora(_StandIn(), task_type="FEATURE_EXTRACTION", target_modules=["query"])
    is_choice = TASKS[cell.task].kind == "choice"
    likelihood = Choice() if is_choice else "classification"
    num_data = 1 if cell.size == "all" else cell.size
    recipe = make_recipe(cell, protocol, peft_model, likelihood, num_data)
    finish: Any = recipe.finish
    description = {
        "fit": asdict(recipe.config),
        "model": describe_model(recipe.model),
        "guide": describe_guide(recipe.guide),
        "num_draws": recipe.num_draws,
        "num_chains": recipe.num_chains,
        "finish": None if finish is None else [type(finish).__name__, asdict(finish)],
        "is_fitted": cell.method != BASE,
    }
    return dict(json.loads(json.dumps(description)))


def fit_key(cell: Cell, protocol: Protocol) -> dict[str, Any]:
    """What two cells have in common whose fits are the same numbers, whatever comes after the fit."""
    description = describe(cell, protocol)
    kept = {name: description[name] for name in ("fit", "model", "guide")}
    place = {"task": cell.task, "base_model": cell.model, "size": cell.size, "seed": cell.seed}
    return {"protocol": protocol.record(), **place, **kept}


class _StandIn(nn.Module):
    """A base model of one adapted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 4)
        self.layers = nn.ModuleList([nn.ModuleDict({"query": nn.Linear(4, 4)})])

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embedding

    def forward(self, input_ids: Tensor) -> Any:
        """The outputs as a head would give them."""
        return SimpleNamespace(logits=self.layers[0].get_submodule("query")(self.embedding(input_ids)))
