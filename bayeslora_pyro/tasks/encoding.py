"""From examples to token ids: sequences, scored options, in a row each or packed, lettered choices, plain text."""

from __future__ import annotations

__all__ = ["FORMS", "Feature", "Form", "label_token_ids"]

from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Any, Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from .examples import Examples

Form: TypeAlias = Literal["sequence", "options", "packed", "label_tokens", "next_token"]
"""How an example becomes tokens."""

Feature: TypeAlias = dict[str, Any]
"""One encoded example: lists of per-token values and scalar labels by name, options as a list of features."""

_ANSWER = "\nAnswer:"


def label_token_ids(tokenizer: PreTrainedTokenizerBase, num_choices: int) -> list[int]:
    """Return the tokens that answer a lettered question: those of ``" A"``, ``" B"`` … after ``"Answer:"``.

    Args:
        tokenizer: A fast tokenizer.
        num_choices: The number of letters, at most 26.

    Returns:
        One token id for each letter.

    Raises:
        ValueError: If a letter is not one token of its own.
    """
    if not 1 <= num_choices <= len(ascii_uppercase):
        raise ValueError(f"num_choices={num_choices} has no letters: use 1 to {len(ascii_uppercase)}")
    tokens = []
    for letter in ascii_uppercase[:num_choices]:
        ids, starts_option = _tokenize(tokenizer, _ANSWER.strip(), f" {letter}")
        tokens.append(ids[starts_option:])
    if any(len(ids) != 1 for ids in tokens) or len({ids[0] for ids in tokens}) != num_choices:
        raise ValueError(
            f"the letters are not single tokens of {type(tokenizer).__name__} ({tokens}): "
            "use form='options' instead"
        )
    return [ids[0] for ids in tokens]


def _sequences(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Encode each text whole, with its class or number as label."""
    labels = examples.labels if examples.kind == "classification" else examples.targets
    features = _whole(examples, tokenizer, max_length)
    return [{**feature, "labels": label} for feature, label in zip(features, labels, strict=True)]


def _next_tokens(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Encode each text with itself as labels, or with its completion and that as labels; the model shifts them."""
    if examples.completions:
        pairs = zip(examples.texts, examples.completions, strict=True)
        return [_completed(tokenizer, *pair, max_length) for pair in pairs]
    return [
        {**feature, "labels": feature["input_ids"]} for feature in _whole(examples, tokenizer, max_length)
    ]


def _completed(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, max_length: int) -> Feature:
    """Encode prompt and completion as one text that then ends, with labels on what comes after the prompt."""
    ids, first = _tokenize(tokenizer, prompt, completion)
    first = max(first, 1)  # nothing foresees the first token of all
    if tokenizer.eos_token_id is not None:
        ids = [*ids, tokenizer.eos_token_id]
    feature = _fitted(ids[: first + max_length - 1], first, max_length)
    pairs = zip(feature["input_ids"], feature.pop("option_mask"), strict=True)
    return {**feature, "labels": [token if own else -100 for token, own in pairs]}


def _whole(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Tokenise each text, with all that the tokenizer yields."""
    columns = tokenizer(list(examples.texts), truncation=True, max_length=max_length, padding=False)
    return [{name: values[item] for name, values in columns.items()} for item in range(len(examples))]


def _options(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Encode question and option together, once for each option, and mark the option's own tokens."""
    return [
        {
            "options": [
                _fitted(
                    *_tokenize(tokenizer, f"Question: {question}{_ANSWER}", f" {option.strip()}"), max_length
                )
                for option in options
            ],
            "labels": label,
        }
        for question, options, label in zip(examples.texts, examples.choices, examples.labels, strict=True)
    ]


def _packed(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Encode question and options as for a row each, and lay them into one row, what the rows begin with once."""
    features = _options(examples, tokenizer, max_length)
    return [{**_pack(feature["options"]), "labels": feature["labels"]} for feature in features]


def _pack(options: Sequence[Feature]) -> Feature:
    """Lay the rows of one question behind one another.

    A token keeps the place in its own row as its position, and the number of that row as its option; -1 in the part
    that all rows begin with. That part ends before any option's own tokens.
    """
    own = min(row["option_mask"].index(1) for row in options)
    columns = zip(*(row["input_ids"][:own] for row in options), strict=True)
    shared = next((place for place, tokens in enumerate(columns) if len(set(tokens)) > 1), own)
    packed = {
        name: list(options[0][name][:shared]) for name in ("input_ids", "attention_mask", "option_mask")
    }
    packed |= {"position_ids": list(range(shared)), "option": [-1] * shared}
    for number, row in enumerate(options):
        rest = len(row["input_ids"]) - shared
        for name in ("input_ids", "attention_mask", "option_mask"):
            packed[name] += row[name][shared:]
        packed["position_ids"] += range(shared, shared + rest)
        packed["option"] += [number] * rest
    return packed


def _label_tokens(examples: Examples, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Feature]:
    """Encode question and lettered choices; the last token is where the letter is predicted."""
    features = []
    for question, choices, label in zip(examples.texts, examples.choices, examples.labels, strict=True):
        lines = [
            f"{letter}. {choice.strip()}" for letter, choice in zip(ascii_uppercase, choices, strict=False)
        ]
        prompt = "\n".join([f"Question: {question}", *lines])
        feature = _fitted(*_tokenize(tokenizer, prompt, _ANSWER), max_length)
        del feature["option_mask"]
        features.append({**feature, "labels": label})
    return features


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompt: str, option: str) -> tuple[list[int], int]:
    """Tokenise prompt and option as one text.

    Returns:
        The token ids, without what the tokenizer appends (an end-of-text), and the place of the option's
        first token: the first that reaches beyond the prompt, so that one across the border is the option's.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which gives no offsets: load the fast one"
        )
    encoded = tokenizer(prompt + option, return_offsets_mapping=True, padding=False)
    ends = [end for _, end in encoded["offset_mapping"]]  # 0 for special tokens
    last = max(place for place, end in enumerate(ends) if end > 0)
    first = next(place for place, end in enumerate(ends) if end > len(prompt))
    return encoded["input_ids"][: last + 1], first


def _fitted(ids: list[int], first: int, max_length: int) -> Feature:
    """Drop tokens from the front of the prompt, behind its first token, until the text fits."""
    surplus = max(0, len(ids) - max_length)
    num_option = len(ids) - first
    if surplus >= first:
        raise ValueError(
            f"max_length={max_length} leaves no room for a prompt before an option of {num_option} tokens: "
            f"use at least {num_option + 1}"
        )
    # The first token stays: it may be the begin-of-text that the base model was trained with.
    kept = ids[:1] + ids[1 + surplus :]
    return {
        "input_ids": kept,
        "attention_mask": [1] * len(kept),
        "option_mask": [0] * (len(kept) - num_option) + [1] * num_option,
    }


FORMS: dict[Form, Callable[[Examples, PreTrainedTokenizerBase, int], list[Feature]]] = {
    "sequence": _sequences,
    "options": _options,
    "packed": _packed,
    "label_tokens": _label_tokens,
    "next_token": _next_tokens,
}
"""The encoders by form: from examples, tokenizer and maximal length to features."""
