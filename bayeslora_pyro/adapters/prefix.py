"""What a model computes before its first random factor, run once for all draws."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from torch import Tensor, nn

from bayeslora_pyro.adapters.blocks import CALL

__all__ = ["NotPlainError", "Prefix", "RefusingOperator", "find_prefix"]

Forward = Callable[..., Any]


class NotPlainError(Exception):
    """The model is no plain stack of blocks, so nothing can be shared."""


class _Reached(Exception):
    """The first block with a random factor is reached: the prefix is over."""


class RefusingOperator:
    """Stands for a random factor where only what comes before any may run."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, inputs: Tensor) -> NoReturn:
        """Ends the attempt."""
        raise NotPlainError


@dataclass(frozen=True)
class Prefix:
    """The blocks before the first that has a random factor, and what they put out for a batch.

    Under S draws these blocks see the same rows S times. They are run on one tile; in a pass over S tiles each puts out
    S copies of what it put out then, and the model does the rest as ever: masks, positions and heads are its own.

    Args:
        blocks: The blocks, in their order.
        first: The first block with a random factor.
        forwards: What the blocks compute.
        outputs: What each of them put out; empty before :meth:`recorded`.
        versions: How often each of these tensors had been changed in place by then.
    """

    blocks: tuple[nn.Module, ...]
    first: nn.Module
    forwards: tuple[Forward, ...]
    outputs: tuple[Any, ...] = ()
    versions: tuple[list[int | None], ...] = ()

    @property
    def num_bytes(self) -> int:
        """The memory that the outputs take."""
        return sum(part.nbytes for output in self.outputs for part in _parts(output))

    def recorded(self, run: Callable[[], Any], rows: int) -> Prefix:
        """The prefix with what its blocks put out.

        Args:
            run: Runs the model on one tile; it is left at the first block with a random factor.
            rows: The rows of a tile.

        Raises:
            NotPlainError: If the blocks do not run one after another before that block, or put out anything but tensors
                with an entry for each row, or that is changed in place afterwards.
        """
        seen: list[tuple[int, Any, list[int | None]]] = []

        def keep(index: int, *args: Any, **kwargs: Any) -> Any:
            output = self.forwards[index](*args, **kwargs)
            seen.append((index, output, _versions(output)))
            return output

        try:
            with replaced_forwards((*self.blocks, self.first), keep, _reach):
                run()
        except _Reached:
            in_order = [index for index, *_ in seen] == [*range(len(self.blocks))]
            # What was changed in place since it was put out would be changed a second time when it is replayed.
            whole = all(_is_of_rows(out, rows) and _versions(out) == before for _, out, before in seen)
            if in_order and whole and all(None not in before for *_, before in seen):
                _, outputs, versions = zip(*seen, strict=True)
                return replace(self, outputs=outputs, versions=versions)
        raise NotPlainError

    def put_out(self, index: int, num_tiles: int) -> Any:
        """S tiles of what a block put out.

        One tile of what a block of the prefix sees next is what was put out itself. What others see next they may
        change in place, so they are given copies.

        Raises:
            NotPlainError: If it was changed in place since.
        """
        output = self.outputs[index]
        if num_tiles > 1 or index == len(self.blocks) - 1:
            return _tiled(output, num_tiles)
        if _versions(output) != self.versions[index]:
            raise NotPlainError
        return output

    @contextmanager
    def replayed(
        self, num_tiles: int, record: Callable[[], Prefix] | None = None
    ) -> Iterator[Callable[[], None]]:
        """Has the blocks put out S tiles of what they put out for one, instead of running.

        Args:
            num_tiles: The number S of tiles of the passes within the context.
            record: Records anew in each pass; by default the outputs are those of this prefix.

        Yields:
            What is to be called before each pass but the first.

        Raises:
            NotPlainError: From within, if the blocks do not run once in a pass and in their order, each on activations
                of the shape that it puts out.
        """
        known, due = self, 0

        def replay(index: int, *args: Any, **kwargs: Any) -> Any:
            nonlocal known, due
            if index != due:
                raise NotPlainError
            if index == 0 and record is not None:
                known = record()
            due += 1
            output = known.put_out(index, num_tiles)
            given = [value.shape for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            if _parts(output)[0].shape not in given:  # rows are not first, or the block changes the shape
                raise NotPlainError
            return output

        def start() -> None:
            nonlocal due
            due = 0

        with replaced_forwards(self.blocks, replay):
            yield start


def find_prefix(model: nn.Module, layers: Collection[str]) -> Prefix | None:
    """Finds the blocks before the first that has a random factor.

    They are the entries of the outermost `nn.ModuleList` around all layers with random factors that have one around
    them.

    Args:
        model: The base model.
        layers: The names of the layers with random factors.

    Returns:
        The blocks, nothing of which has run; None if there is no such list, or its first block has a random factor.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    places = [place for layer in layers if (place := _place(layer, lists))]
    if len({name for name, _ in places}) != 1:
        return None
    blocks = tuple(lists[places[0][0]])
    index = min(index for _, index in places)
    if index == 0:
        return None
    return Prefix(blocks[:index], blocks[index], tuple(block.forward for block in blocks[:index]))


@contextmanager
def replaced_forwards(
    blocks: Sequence[nn.Module], forward: Callable[..., Any], last: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Has blocks compute a function of their index and their arguments; the last of them perhaps another.

    What they were compiled to is put aside: it would not see these functions, or compile what they note.
    """
    before = [{name: vars(block).get(name) for name in ("forward", CALL)} for block in blocks]
    try:
        for index, block in enumerate(blocks):
            chosen = last if last is not None and block is blocks[-1] else forward
            vars(block).update({"forward": _with_index(chosen, index), CALL: None})
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            for name, value in own.items():
                vars(block).pop(name, None)
                if value is not None:
                    vars(block)[name] = value


def _with_index(forward: Callable[..., Any], index: int) -> Forward:
    return lambda *args, **kwargs: forward(index, *args, **kwargs)


def _reach(*_: Any, **__: Any) -> NoReturn:
    raise _Reached


def _place(layer: str, lists: Mapping[str, nn.Module]) -> tuple[str, int] | None:
    """The outermost list around a layer, and the index of the entry that holds it."""
    around = [name for name in lists if layer.startswith(f"{name}.")]
    if not around:
        return None
    name = min(around, key=len)
    return name, int(layer[len(name) + 1 :].partition(".")[0])


def _parts(output: Any) -> tuple[Any, ...]:
    parts = output if type(output) in (tuple, list) else (output,)
    return tuple(part for part in parts if part is not None)


def _versions(output: Any) -> list[int | None]:
    """How often each tensor was changed in place; None where torch does not know."""
    tensors = [part for part in _parts(output) if isinstance(part, Tensor)]
    return [None if tensor.is_inference() else tensor._version for tensor in tensors]


def _is_of_rows(output: Any, rows: int) -> bool:
    parts = _parts(output)
    return bool(parts) and all(isinstance(p, Tensor) and p.dim() > 1 and len(p) == rows for p in parts)


def _tiled(output: Any, num_tiles: int) -> Any:
    """S copies of what a block put out, never itself."""
    if type(output) in (tuple, list):
        return type(output)(_tiled(part, num_tiles) for part in output)
    return None if output is None else output.repeat(num_tiles, *[1] * (output.dim() - 1))
