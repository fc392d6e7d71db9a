"""From options to a base model with LoRA layers, and from the folder of a run to its posteriors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora_pyro.adapters import add_lora, packs
from bayeslora_pyro.cli.choices import choice_form
from bayeslora_pyro.cli.errors import CommandError, blame, one_line
from bayeslora_pyro.cli.trained import load_trained
from bayeslora_pyro.cli.units import TargetPosterior
from bayeslora_pyro.ensemble import CONFIG as ENSEMBLE_CONFIG
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.tasks import (
    PACKAGED_MODELS,
    Examples,
    Form,
    check_quantization,
    default_target_modules,
    load_base_model,
    make_loader,
)

__all__ = ["KINDS", "Language", "adapt", "device_of", "load_language", "load_members"]

KINDS = {
    "classification": ("classification", "SEQ_CLS", "classification"),
    "regression": ("regression", "SEQ_CLS", "regression"),
    "choice": ("choice", "CAUSAL_LM", "choice"),
    "text": ("next_token", "CAUSAL_LM", "next_token"),
}
"""By the kind of the examples: what the base model predicts, PEFT's word for it, the likelihood."""


@dataclass(frozen=True)
class Language:
    """A base model with its tokenizer, and the longest text it is given.

    Args:
        base_model: The base model.
        tokenizer: Its tokenizer.
        max_length: The longest text in tokens.
        form: How examples become tokens; None for the usual form of their kind.
    """

    base_model: Any
    tokenizer: Any
    max_length: int
    form: Form | None = None

    def loader(self, examples: Examples, batch_size: int, *, training: bool = False, seed: int = 0) -> Any:
        """Batches of examples of like length; for training shuffled, as the seed decides."""
        return make_loader(
            examples,
            self.tokenizer,
            batch_size=batch_size,
            shuffle=training,
            seed=seed,
            max_length=self.max_length,
            form=self.form,
            group_by_length=True,
        )


def load_language(
    options: Mapping[str, Any], kind: str, num_classes: int, max_length: int | None, *, divided: bool = False
) -> Language:
    """Loads the base model that the options name.

    Args:
        options: The options of `fit`.
        kind: The kind of the examples.
        num_classes: The number of classes; ignored unless the kind is `"classification"`.
        max_length: The longest text in tokens; None for 128, or what the model takes.
        divided: Whether it is to be divided among processes: then it stays on the processor, from which each takes its
            part to its device.
    """
    name, form = options["model"], choice_form(options, kind)
    dtype = None if options["dtype"] is None else getattr(torch, options["dtype"])
    num_labels = num_classes if kind == "classification" else None
    bits = options.get("quantization")  # which runs of earlier versions have not
    task_type: Any = KINDS[kind][0]
    if bits is not None:
        with blame("--quantization", bits):
            check_quantization(bits)
    with _blame_model(name):
        base_model, tokenizer = load_base_model(
            name,
            task_type=task_type,
            num_labels=num_labels,
            dtype=dtype,
            quantization=bits,
            seed=options["seed"],
        )
    if bits is None and not divided:  # else it lies where it was loaded
        device: Any = device_of(options)  # what transformers takes is said wrongly
        base_model.to(device)
    if form == "options" and packs(base_model):
        form = "packed"  # the same scores from a third of the tokens
    return Language(base_model, tokenizer, _max_length(base_model, tokenizer, max_length), form)


def device_of(options: Mapping[str, Any]) -> torch.device:
    """The device that the options name, or the best there is."""
    device = options["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise CommandError(f"--device {device} is not to be had here: give cpu, or leave it out") from error


@contextmanager
def _blame_model(name: str) -> Iterator[None]:
    """Says of a model that cannot be loaded why, in a sentence, whatever library has read its files."""
    if name in PACKAGED_MODELS:
        with blame("--model"):
            yield
        return
    try:
        yield
    except Exception as error:
        reason = one_line(error.__cause__ or error).partition(". ")[0].rstrip(".")
        raise CommandError(
            f"--model {name} cannot be loaded ({reason}): give {' or '.join(PACKAGED_MODELS)}, the folder of a saved "
            "base model, or a name on the hub"
        ) from error


def _max_length(base_model: Any, tokenizer: Any, asked: int | None) -> int:
    positions = getattr(base_model.config, "max_position_embeddings", None)
    longest = min(int(tokenizer.model_max_length), positions or int(tokenizer.model_max_length))
    if asked is not None and asked > longest:
        raise CommandError(f"--max-length {asked}: the base model takes at most {longest} tokens")
    return min(128, longest) if asked is None else asked


def adapt(language: Language, options: Mapping[str, Any], examples: Examples) -> nn.Module:
    """Puts LoRA layers into the base model, fresh ones or those of a trained LoRA."""
    task_type = KINDS[examples.kind][1]
    if options["adapter"] is not None:
        return load_trained(language.base_model, options["adapter"], task_type, examples.classes)
    targets = options["target_modules"] or default_target_modules(options["model"])
    with blame("--target-modules"):
        return add_lora(
            language.base_model,
            task_type=task_type,
            r=options["r"],
            lora_alpha=options["lora_alpha"],
            lora_dropout=options["lora_dropout"],
            target_modules=targets,
            seed=options["seed"],
        )


def load_members(folder: Path, language: Language, kind: str) -> list[Posterior]:
    """Loads the posterior of a run over its base model, or the members of its ensemble.

    Those of a regression are in the units of the targets.
    """
    family = TargetPosterior if kind == "regression" else Posterior
    with blame("DIR"):
        if (folder / ENSEMBLE_CONFIG).is_file():
            loaded = list(Ensemble.load(folder, language.base_model))
        else:
            loaded = [Posterior.load(folder, language.base_model)]
    device = language.base_model.device
    for posterior in loaded:
        posterior.model.to(device)
        posterior.guide.to(device)
    return [
        family(
            each.model,
            each.guide,
            history=each.history,
            metadata=each.metadata,
            temperature=each.temperature,
        )
        for each in loaded
    ]
