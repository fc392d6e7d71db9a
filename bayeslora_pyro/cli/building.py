"""From options to a method made ready for a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from typing import Any

from torch import nn

from bayeslora_pyro.cli.choices import choice_likelihood
from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.cli.language import KINDS, Language
from bayeslora_pyro.cli.trained import check_post_hoc
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.methods import METHODS, Recipe
from bayeslora_pyro.models import BayesianLora, Likelihood
from bayeslora_pyro.runs import check_draw_per_item
from bayeslora_pyro.tasks import (
    Examples,
)

__all__ = ["check_method", "make_likelihood", "make_recipe"]

_GUIDE = {
    "transform": "transform",
    "depth": "depth",
    "over": "over",
    "conditioned": "conditioned",
    "guide.scale": "scale",
    "guide.noise_scale": "noise_scale",
    "guide.rate": "rate",
    "guide.features": "features",
    "guide.link": "link",
    "guide.hidden": "hidden",
}
"""The options that are arguments of the guide."""


_FAMILIES = ("laplace", "tfb")
"""The first parts of the names of options that belong to the methods whose names start alike."""


def check_method(options: Mapping[str, Any]) -> None:
    """Complains of a method that there is not, or that does not go with a trained LoRA."""
    name = options["method"]
    if name not in METHODS:
        raise CommandError(f"--method {name} is not known: give one of {', '.join(METHODS)}")
    check_post_hoc(options)


def make_likelihood(language: Language, options: Mapping[str, Any], examples: Examples) -> Likelihood | str:
    """The likelihood of the kind of the examples, or its name."""
    if examples.kind == "choice":
        return choice_likelihood(options, language.tokenizer, examples.num_outcomes)
    return KINDS[examples.kind][2]


def make_recipe(
    peft_model: nn.Module,
    options: Mapping[str, Any],
    likelihood: Likelihood | str,
    num_data: int,
    tuning: Any,
) -> Recipe:
    """Makes a method ready, with what the options change of its prior, its guide and its fit.

    Args:
        peft_model: The PEFT model.
        options: The options of `fit`.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        tuning: Batches of the tuning items, for `--laplace.precision tuning`.
    """
    build = METHODS[options["method"]]
    own = _own_arguments(options)
    if "batch_size" in signature(build).parameters:
        own["batch_size"] = options["batch_size"]
    if own.get("precision") == "tuning":
        own["tuning"] = tuning
    given = [f"--{name} {options[name]}" for name in options if _is_own(name, options)]
    with blame(", ".join(given) or f"--method {options['method']}"):
        recipe = build(peft_model, likelihood, num_data, seed=options["seed"], **own)
    prior = {
        name.partition(".")[2]: value
        for name, value in options.items()
        if name.startswith("prior.") and value is not None
    }
    guide: dict[str, Any] = {key: options[name] for name, key in _GUIDE.items() if options[name] is not None}
    if prior or guide:
        recipe = _changed(recipe, options["method"], prior, guide)
    settings = {name: options[name] for name in vars(FitConfig()) if options[name] is not None}
    with blame(", ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())):
        recipe = replace(recipe, config=recipe.config.replace(**settings))
        check_draw_per_item(recipe.guide, recipe.config)
    if options["num_chains"] is not None:
        recipe = replace(recipe, num_chains=options["num_chains"])
    share = math.ceil(recipe.num_draws / recipe.num_members)  # of each member alike
    return replace(recipe, num_draws=share * recipe.num_members)


def _is_own(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an option is given that one family of methods has for its own."""
    return name.partition(".")[0] in _FAMILIES and options[name] is not None


def _own_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the options say to the method itself."""
    own = {}
    for name in options:
        if _is_own(name, options):
            family, _, argument = name.partition(".")
            if not options["method"].startswith(family):
                raise CommandError(
                    f"--{name.replace('_', '-')} does not fit --method {options['method']}: leave it out, or choose "
                    "another method"
                )
            own[argument] = options[name]
    return own


def _changed(recipe: Recipe, method: str, prior: dict[str, Any], guide: dict[str, Any]) -> Recipe:
    """Builds the parts of a recipe again with other arguments."""
    priors: Any = {key: type(each)(**each.config()) for key, each in recipe.model.priors_by_key().items()}
    random = [key for key, each in priors.items() if each.is_random]
    key = random[0] if random else next(iter(priors))
    own: Any = priors[key]
    base = getattr(recipe.guide, "base", recipe.guide)
    known = base.config() | recipe.guide.config()
    flags = {key: f"--{name.replace('_', '-')}" for name, key in _GUIDE.items()}
    for flag, name, table in (
        *((f"--prior.{name.replace('_', '-')}", name, own.config()) for name in prior),
        *((flags[name], name, known) for name in guide),
    ):
        if name not in table or not own.is_random:
            raise CommandError(
                f"{flag} does not fit --method {method}: leave it out, or choose another method"
            )
    with blame(_named(prior, guide, flags)):
        model = BayesianLora(
            recipe.model.adapter.peft_model,
            priors | {key: type(own)(**(own.config() | prior))},
            recipe.model.likelihood,
            recipe.model.num_data,
            seed=recipe.model.seed,
        )
        return replace(
            recipe, model=model, guide=type(recipe.guide)(model, **(recipe.guide.config() | guide))
        )


def _named(prior: dict[str, Any], guide: dict[str, Any], flags: Mapping[str, str]) -> str:
    given = {f"--prior.{name.replace('_', '-')}": value for name, value in prior.items()}
    given |= {flags[name]: value for name, value in guide.items()}
    return ", ".join(f"{flag} {value}" for flag, value in given.items())
