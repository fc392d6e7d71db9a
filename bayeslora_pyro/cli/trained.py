"""`--adapter`: a LoRA that is trained already, in the place of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from bayeslora_pyro.adapters import check_base, load_lora
from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.folders import CONFIG, read_record
from bayeslora_pyro.inference import FitResult
from bayeslora_pyro.methods import POST_HOC, Recipe
from bayeslora_pyro.models import Regression
from bayeslora_pyro.types import Batch

__all__ = ["check_post_hoc", "finish_trained", "load_trained"]


def check_post_hoc(options: Mapping[str, Any]) -> None:
    """Complains of a method that a trained LoRA is of no use to."""
    if options["adapter"] is not None and options["method"] not in POST_HOC:
        raise CommandError(
            f"--adapter {options['adapter']} does not fit --method {options['method']}, which is a fit: give one of "
            f"{', '.join(POST_HOC)}"
        )


def load_trained(base_model: nn.Module, folder: str, task_type: str, classes: Sequence[str]) -> nn.Module:
    """Puts the LoRA of a folder into a base model.

    Args:
        base_model: The base model.
        folder: The folder, ours or any other of PEFT's.
        task_type: PEFT's name of what it should predict.
        classes: The names of the classes, if there are any.
    """
    path = Path(folder)
    if (path / CONFIG).is_file():
        _check_ours(base_model, path, classes)
    with blame("--adapter", folder):
        return load_lora(base_model, path, task_type=task_type)


def finish_trained(recipe: Recipe, loader: Iterable[Batch], folder: str) -> FitResult:
    """Makes the posterior; of a regression, with a note if the LoRA seems to know its targets in other units."""
    with blame("--adapter", folder):
        result = recipe.finish_trained(loader)
    likelihood = result.posterior.model.likelihood
    if isinstance(likelihood, Regression) and float(likelihood.scale.detach()) >= 1:
        warnings.warn(
            f"the LoRA of {folder} predicts the training targets no better than their mean: was it trained on targets "
            "standardised by the mean and the deviation of the training set, as those of a run are?",
            stacklevel=2,
        )
    return result


def _check_ours(base_model: nn.Module, folder: Path, classes: Sequence[str]) -> None:
    """Holds a folder of ours, which says more than PEFT's, against the base model and the data."""
    with blame("--adapter"):
        record = read_record(folder)
    known = record["metadata"]
    try:
        check_base(base_model, record["base"])
    except ValueError as error:
        name = known.get("base_model", "the base model that it was fitted on")
        raise CommandError(f"--adapter {folder} is of another base model: give --model {name}") from error
    names = known.get("label_names")
    if names is not None and list(names) != list(classes):
        raise CommandError(
            f"--adapter {folder} has the classes {', '.join(names)}, and the data {', '.join(classes) or 'none'}: give "
            "data like those that it was fitted to"
        )
