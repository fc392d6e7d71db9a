"""Batches as a Hugging Face collator yields them."""

from __future__ import annotations

__all__ = ["make_loader"]

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from .encoding import FORMS, Feature, Form
from .examples import Examples, Kind

Tensors: TypeAlias = dict[str, Tensor]

FORMS_OF_KIND: dict[Kind, tuple[Form, ...]] = {
    "classification": ("sequence",),
    "regression": ("sequence",),
    "choice": ("options", "packed", "label_tokens"),
    "text": ("next_token",),
}
"""The forms that fit each kind of examples, the default first."""


GROUP = 8
"""The number of batches that are grouped by length at a time."""


class _Features(Dataset[Feature]):
    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, item: int) -> Feature:
        return self.features[item]


class _ShuffledGroups(Sampler[int]):
    """Random items, sorted by length within each run of `GROUP` batches; the batches of a run in random order."""

    def __init__(self, lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> None:
        self.lengths, self.batch_size, self.generator = lengths, batch_size, generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        items, size = torch.randperm(len(self), generator=self.generator).tolist(), self.batch_size
        for start in range(0, len(items), GROUP * size):
            run = sorted(items[start : start + GROUP * size], key=lambda item: self.lengths[item])
            batches = [run[i : i + size] for i in range(0, len(run), size)]
            if len(batches[-1]) == size:  # a short batch has to be the last
                batches = [
                    batches[i] for i in torch.randperm(len(batches), generator=self.generator).tolist()
                ]
            for batch in batches:
                yield from batch


def make_loader(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int = 0,
    max_length: int = 128,
    form: Form | None = None,
    group_by_length: bool = False,
) -> DataLoader[Tensors]:
    """Tokenise examples once and return a loader of padded batches.

    Batches hold ``input_ids`` and ``attention_mask`` of shape ``(B, T)``, whatever else the tokenizer yields,
    and ``labels``: ``(B,)`` class indices or numbers, or for plain text ``(B, T)`` token ids, -100 on
    padding and on prompts.

    Multiple choice comes as ``"options"``, where ``input_ids`` and ``attention_mask`` ``(N, T)`` hold all
    options of all items one after another, ``option_mask`` ``(N, T)`` is 1 on an option's own tokens,
    ``item`` ``(N,)`` is the item in the batch and ``labels`` ``(B,)`` the right option of each item; as
    ``"packed"``, the same scores from a row for each item, ``(B, T)``, where the question stands once and the
    options behind it, ``option`` says which option each token belongs to (-1: all) and ``position_ids`` where it
    would stand in a row of its own; or as ``"label_tokens"``, with the choices lettered in the prompt, where the
    last token of each row is the answer slot and ``labels`` ``(B,)`` the place of the right letter among
    :func:`label_token_ids`.

    Args:
        examples: The examples.
        tokenizer: The tokenizer of the base model; rows are padded on its ``padding_side``.
        batch_size: The number of items in a batch.
        shuffle: Whether each epoch has an order of its own, drawn from ``seed``.
        seed: The seed of the loader's own generator.
        max_length: The largest number of tokens. Longer texts lose their end, longer questions and prompts
            their start, and completions that leave no room for a prompt their end.
        form: How examples become tokens; None for the form of their kind, ``"options"`` for multiple choice.
        group_by_length: Whether batches hold items of similar length, which saves padding. With ``shuffle``, the
            groups are drawn anew in each epoch, from some batches at a time. Without, the longest come first:
            ``loader.sampler`` lists the indices as they come.

    Returns:
        A loader that leaves the global random state alone.

    Raises:
        ValueError: If an argument does not fit the examples or the tokenizer.
    """
    form = form or FORMS_OF_KIND[examples.kind][0]
    _check(examples, tokenizer, batch_size, max_length, form)
    features = FORMS[form](examples, tokenizer, max_length)
    generator = torch.Generator().manual_seed(seed)
    collate = partial(_collate_options if form == "options" else _collate, tokenizer=tokenizer)
    if group_by_length:
        lengths = [_length(feature) for feature in features]
        order = sorted(range(len(lengths)), key=lambda item: -lengths[item])
        sampler = _ShuffledGroups(lengths, batch_size, generator) if shuffle else order
        return DataLoader(
            _Features(features),
            batch_size=batch_size,
            sampler=sampler,
            generator=generator,
            collate_fn=collate,
        )
    return DataLoader(
        _Features(features), batch_size=batch_size, shuffle=shuffle, generator=generator, collate_fn=collate
    )


def _check(
    examples: Examples,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    max_length: int,
    form: Form,
) -> None:
    fitting = FORMS_OF_KIND[examples.kind]
    if form not in fitting:
        raise ValueError(
            f"form={form!r} does not fit {examples.kind} examples: use {' or '.join(map(repr, fitting))}"
        )
    if len(examples) == 0:
        raise ValueError(f"examples {examples.name!r} is empty: give at least one item")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} holds no items: use 1 or more")
    if not 1 < max_length <= tokenizer.model_max_length:
        raise ValueError(f"max_length={max_length} is out of range: use 2 to {tokenizer.model_max_length}")
    if tokenizer.pad_token_id is None:
        raise ValueError("tokenizer has no padding token: set tokenizer.pad_token = tokenizer.eos_token")


def _length(feature: Feature) -> int:
    """Count the tokens of an item's longest row."""
    return max(len(row["input_ids"]) for row in feature.get("options", [feature]))


def _collate(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Tensors:
    """Stack what is one number an item and pad what is one number a token."""
    fill = {
        "input_ids": tokenizer.pad_token_id,
        "token_type_ids": tokenizer.pad_token_type_id,
        "labels": -100,
        "option": -1,
    }
    batch = {}
    for name, first in features[0].items():
        columns = [feature[name] for feature in features]
        if isinstance(first, list):
            rows = [torch.tensor(column) for column in columns]
            batch[name] = pad_sequence(
                rows, batch_first=True, padding_value=fill.get(name, 0), padding_side=tokenizer.padding_side
            )
        else:
            batch[name] = torch.tensor(
                columns, dtype=torch.float32 if isinstance(first, float) else torch.int64
            )
    return batch


def _collate_options(features: Sequence[Feature], tokenizer: PreTrainedTokenizerBase) -> Tensors:
    """Lay the options of all items one after another and remember whose they are."""
    batch = _collate([option for feature in features for option in feature["options"]], tokenizer)
    batch["item"] = torch.tensor([item for item, feature in enumerate(features) for _ in feature["options"]])
    batch["labels"] = torch.tensor([feature["labels"] for feature in features])
    return batch
