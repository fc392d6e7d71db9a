"""Tiles: a model that runs every row that it is given once for each of S draws, and answers for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bayeslora_pyro.adapters.prefix import Prefix

__all__ = ["tiled_rows"]

PER_ROW = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
"""The arguments of a decoder that have an entry for each row."""

Answer = Callable[[Tensor, Tensor], Tensor]
"""From the tokens given, `(rows, tokens)`, and the logits behind the last of them, `(S * rows, vocabulary)`, to those
of all draws together, `(rows, vocabulary)`."""


@contextmanager
def tiled_rows(
    base_model: nn.Module, num_tiles: int, prefix: Prefix | None, answer: Answer
) -> Iterator[None]:
    """Has a decoder run S tiles of the rows that it is given, with a cache of keys and values for each.

    To whoever calls it, such as `transformers`' `generate`, it stays a model of its rows. With a prefix the tiles share
    the blocks before the first random factor in every pass, and the keys and values of these blocks.

    Args:
        base_model: The decoder.
        num_tiles: The number S of tiles.
        prefix: The blocks that the tiles share.
        answer: What the model says behind the last token.

    Raises:
        ValueError: From within, if the model takes something else with an entry for each row.
    """
    given: dict[str, Any] = {}
    with ExitStack() as stack:
        start = _nothing
        if prefix is not None:
            # Within the pass over all tiles, which then has read the length of the cache before these blocks add to it.
            record = partial(_record, prefix, base_model, given)
            start = stack.enter_context(prefix.replayed(num_tiles, record))

        def enter(
            _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[Any, dict[str, Any]]:
            start()
            given.clear()
            given.update(kwargs)
            return args, _tiled(kwargs, num_tiles)

        def leave(_module: nn.Module, _args: Any, _kwargs: Any, outputs: Any) -> None:
            outputs.logits = answer(given["input_ids"], outputs.logits[:, -1]).unsqueeze(1)

        for handle in (
            base_model.register_forward_pre_hook(enter, with_kwargs=True),
            base_model.register_forward_hook(leave, with_kwargs=True),
        ):
            stack.callback(handle.remove)
        yield


def _nothing() -> None:
    """Starts a pass where nothing is shared."""


def _record(prefix: Prefix, base_model: nn.Module, given: Mapping[str, Any]) -> Prefix:
    return prefix.recorded(lambda: base_model.forward(**given), len(given["input_ids"]))


def _tiled(kwargs: Mapping[str, Any], num_tiles: int) -> dict[str, Any]:
    rows = len(kwargs["input_ids"])
    tiled = dict(kwargs)
    for name, value in kwargs.items():
        if name in PER_ROW and isinstance(value, Tensor) and value.dim() == 2 and len(value) == rows:
            tiled[name] = value.repeat(num_tiles, 1)
        elif isinstance(value, Tensor) and value.dim() > 1 and len(value) != 1:
            raise ValueError(
                f"generate cannot give each draw its own {name!r}, of shape {tuple(value.shape)}."
            )
    return tiled
