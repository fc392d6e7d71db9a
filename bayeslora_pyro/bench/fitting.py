"""The fit of a cell: a base model with LoRA, a method, and what comes out of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayeslora_pyro.adapters import add_lora, packs
from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.bench.contenders import make_recipe
from bayeslora_pyro.bench.data import Sets
from bayeslora_pyro.bench.tiers import BASE
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.inference import FitResult
from bayeslora_pyro.methods import Recipe
from bayeslora_pyro.models import Choice, Likelihood
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.tasks import (
    TASKS,
    Examples,
    Form,
    default_target_modules,
    label_token_ids,
    load_base_model,
    make_loader,
)

__all__ = ["Fitted", "Ground", "fit_cell", "prepare"]

FIVE_LABELS = ("arc_easy", "arc_challenge")
"""The tasks that the published evaluation scores over five letters, though nearly all of their items have four."""


@dataclass(frozen=True)
class Ground:
    """What a method is fitted on.

    Args:
        peft_model: The base model with LoRA.
        tokenizer: Its tokenizer.
        likelihood: The likelihood, or its name.
        recipe: The method made ready.
        sets: The sets.
        cell: The cell.
        protocol: The protocol.
        form: How examples become tokens; None for the usual form of their kind.
    """

    peft_model: nn.Module
    tokenizer: Any
    likelihood: Likelihood | str
    recipe: Recipe
    sets: Sets
    cell: Cell
    protocol: Protocol
    form: Form | None = None

    def loader(self, examples: Examples, *, training: bool = False) -> Any:
        """Batches of items of like length, shuffled for training."""
        return make_loader(
            examples,
            self.tokenizer,
            batch_size=self.protocol.batch_size if training else self.protocol.evaluation_batch_size,
            shuffle=training,
            seed=self.cell.seed,
            max_length=min(self.protocol.max_length, self.tokenizer.model_max_length),
            form=self.form,
            group_by_length=True,
        )


@dataclass(frozen=True)
class Fitted:
    """A fitted method.

    Args:
        chains: The posteriors that predict together.
        fit_seconds: How long the fit took; None where it was another's, or was resumed.
        finish_seconds: How long that took which comes after the fit.
    """

    chains: Ensemble
    fit_seconds: float | None
    finish_seconds: float


def prepare(cell: Cell, protocol: Protocol, sets: Sets) -> Ground:
    """Loads the base model of a cell, and makes its method ready.

    Args:
        cell: The cell.
        protocol: The protocol.
        sets: The sets of the cell.
    """
    kind = TASKS[cell.task].kind
    dtype = None if protocol.dtype is None else getattr(torch, protocol.dtype)
    is_choice = kind == "choice"
    quantized: dict[str, Any] = {} if cell.bits is None else {"quantization": f"{cell.bits}bit"}
    base_model, tokenizer = load_base_model(
        cell.base_model,
        task_type="choice" if is_choice else "classification",
        num_labels=None if is_choice else sets.num_outcomes,
        dtype=dtype,
        attention=protocol.attention,
        seed=cell.seed,
        **quantized,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if cell.bits is None:
        base_model.to(device)  # type: ignore[arg-type]
    form = _form(cell, protocol, base_model)
    peft_model = add_lora(
        base_model,
        task_type="CAUSAL_LM" if is_choice else "SEQ_CLS",
        r=protocol.r,
        lora_alpha=protocol.lora_alpha,
        target_modules=protocol.target_modules or default_target_modules(cell.base_model),
        seed=cell.seed,
    )
    likelihood: Likelihood | str = "classification"
    if is_choice:
        letters = _label_tokens(cell, protocol, sets, tokenizer)
        likelihood = Choice(label_tokens=letters, length_normalised=protocol.scoring == "mean")
    recipe = make_recipe(cell, protocol, peft_model, likelihood, len(sets.train))
    recipe.model.to(device)
    recipe.guide.to(device)
    return Ground(peft_model, tokenizer, likelihood, recipe, sets, cell, protocol, form)


def fit_cell(ground: Ground, checkpoint: Path) -> Fitted:
    """Fits the method of a cell, from where a killed run has left it.

    Args:
        ground: The cell made ready.
        checkpoint: The state of the fit. Methods that share a fit, as those do that finish a trained LoRA, share it.
    """
    recipe = ground.recipe
    if ground.cell.method == BASE:
        return Fitted(Ensemble([Posterior(recipe.model, recipe.guide)]), None, 0.0)
    resumed, started = checkpoint.exists(), time.perf_counter()
    ended = [started]
    result: FitResult = recipe.fit(
        ground.loader(ground.sets.train, training=True),
        checkpoint=checkpoint,
        resume=True,
        progress=False,
        callbacks=[lambda _: ended.append(time.perf_counter())],
    )
    done = time.perf_counter()
    return Fitted(result.chains, None if resumed else ended[-1] - started, done - ended[-1])


def _form(cell: Cell, protocol: Protocol, base_model: nn.Module) -> Form | None:
    """How examples become tokens: options packed where the base model bears it, as that takes a third of the tokens."""
    if TASKS[cell.task].kind != "choice":
        return None
    if protocol.scoring == "letters":
        return "label_tokens"
    return "packed" if packs(base_model) else None


def _label_tokens(cell: Cell, protocol: Protocol, sets: Sets, tokenizer: Any) -> tuple[int, ...] | None:
    """The tokens of the letters; None where the options themselves are scored."""
    if protocol.scoring != "letters":
        return None
    count = sets.num_outcomes
    if protocol.blob_compat and cell.task in FIVE_LABELS:
        count = max(count, 5)
    return tuple(label_token_ids(tokenizer, count))
