"""The blocks of layers of a language model, and running them compiled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["blocks_of", "compiled_blocks"]

CALL = "_compiled_call_impl"
"""Where torch has a module keep what it runs in the place of itself (`nn.Module.compile`)."""


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The entries of the outermost lists of modules, such as the layers of an encoder."""
    if isinstance(model, nn.ModuleList):
        return [part for part in model if type(part).forward is not nn.Module.forward]
    return [block for part in model.children() for block in blocks_of(part)]


@contextmanager
def compiled_blocks(model: nn.Module, **options: Any) -> Iterator[None]:
    """Has the blocks of a model run compiled, and as they are on leaving.

    Args:
        model: The model.
        options: What `torch.compile` takes, such as `backend`; `dynamic` is True unless given.

    Raises:
        ValueError: If the model has no list of blocks.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no list of blocks to compile: run it as it is.")
    before = [vars(block).get(CALL) for block in blocks]
    try:
        for block in blocks:
            vars(block)[CALL] = torch.compile(block._call_impl, **{"dynamic": True, **options})
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            vars(block).pop(CALL, None)
            if own is not None:
                vars(block)[CALL] = own
