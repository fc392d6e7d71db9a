"""Named recipes: a prior, a guide, a flow, and the settings of the fit."""

from collections.abc import Callable
from functools import partial

from bayeslora_pyro.methods import (
    balora,
    bayesian_lora,
    blob,
    checkpoint_ensemble,
    ensemble,
    laplace_lora,
    lora,
    mc_dropout,
    rank_space,
    tfb,
)
from bayeslora_pyro.methods import map as maximum_a_posteriori
from bayeslora_pyro.methods.recipe import Recipe as Recipe

__all__ = ["METHODS", "POST_HOC", "Recipe"]

METHODS: dict[str, Callable[..., Recipe]] = {
    "lora": lora.build,
    "map": maximum_a_posteriori.build,
    "ensemble": ensemble.build,
    "checkpoint-ensemble": checkpoint_ensemble.build,
    "mc-dropout": mc_dropout.build,
    "tfb": tfb.build,
    "laplace-lora": laplace_lora.build,
    "laplace-lora-last-layer": partial(laplace_lora.build, modules="last"),
    "blob": blob.build,
    "balora": balora.build,
    "rank-space": rank_space.build,
    "bayesian-lora": bayesian_lora.build,
    "bayesian-lora-mf": partial(bayesian_lora.build, transform=None),
    "bayesian-lora-mn": partial(bayesian_lora.build, transform=None, family="matrix_normal"),
}
"""The methods by name: each takes `(peft_model, likelihood, num_data, *, seed)`."""

POST_HOC = ("tfb", "laplace-lora", "laplace-lora-last-layer")
"""The methods with a step after the fit, which a LoRA that is trained already can be given without one."""
