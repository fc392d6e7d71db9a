"""How multiple choice is scored: what the base model is shown, and what is read off it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.models import Choice
from bayeslora_pyro.tasks import Form, label_token_ids

__all__ = ["choice_form", "choice_likelihood"]


def choice_form(options: Mapping[str, Any], kind: str) -> Form | None:
    """How examples become tokens; None for the usual form of their kind.

    Args:
        options: The options of `fit`, perhaps of a run that is older than `--choice-scoring`.
        kind: The kind of the examples.
    """
    scoring = options.get("choice_scoring")
    if scoring is not None and kind != "choice":
        raise CommandError(
            f"--choice-scoring {scoring} is for multiple choice, and these data are for {kind}: leave it out"
        )
    if kind != "choice":
        return None
    return "label_tokens" if scoring == "letters" else "options"


def choice_likelihood(options: Mapping[str, Any], tokenizer: Any, num_choices: int) -> Choice:
    """The likelihood of a choice, as the options have it.

    Args:
        options: The options of `fit`.
        tokenizer: The tokenizer, which knows the tokens of the letters.
        num_choices: The largest number of choices.
    """
    scoring = options["choice_scoring"]
    if scoring != "letters":  # by default the mean: in a sum the length of a choice outweighs what it says
        return Choice(length_normalised=scoring != "sum")
    with blame("--choice-scoring letters"):
        return Choice(label_tokens=label_token_ids(tokenizer, num_choices))
