"""Batches without end, each epoch in an order of its own that can be had again."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sized
from contextlib import closing

import torch

from bayeslora_pyro.isolation import derive_seed, local_rng, set_seed
from bayeslora_pyro.types import Batch, main_input

__all__ = ["endless_batches", "first_batches"]


def endless_batches(loader: Iterable[Batch], seed: int, skip: int = 0) -> Generator[Batch, None, None]:
    """Goes through a loader for ever; what is random in it is a function of the seed, the epoch and the batch.

    Before each batch, torch's global generator is seeded, and before each epoch the loader's own ones, which are as
    they were when this generator is closed.

    Args:
        loader: Batches. A `DataLoader` is shuffled anew in each epoch.
        seed: The seed.
        skip: How many batches to leave out at the start.

    Raises:
        ValueError: If a pass through the loader yields nothing.
    """
    own = {generator: generator.initial_seed() for generator in _generators(loader)}
    before = {generator: generator.get_state() for generator in own}
    epoch = 0
    try:
        while True:
            for generator, initial_seed in own.items():
                generator.manual_seed(derive_seed(seed, initial_seed, epoch))
            count = 0
            for batch in _seeded(loader, seed, epoch):
                count += 1
                if skip > 0:
                    skip -= 1
                else:
                    yield batch
            _check_count(count, epoch)
            epoch += 1
    finally:
        for generator, state in before.items():
            generator.set_state(state)


def first_batches(loader: Iterable[Batch], seed: int, num_items: int) -> list[Batch]:
    """Returns the first batches of a pass, until they hold so many items, or all; the loader stays as it is.

    Args:
        loader: Batches.
        seed: The seed of the order, and of whatever else is random in the loader.
        num_items: The number of items, which the last batch may exceed.
    """
    batches: list[Batch] = []
    with local_rng(seed, "first batches"), closing(endless_batches(loader, seed)) as endless:
        whole = len(loader) if isinstance(loader, Sized) else sum(1 for _ in loader)
        while len(batches) < whole and sum(len(main_input(batch)) for batch in batches) < num_items:
            batches.append(next(endless))
    return batches


def _seeded(loader: Iterable[Batch], seed: int, epoch: int) -> Generator[Batch, None, None]:
    """One pass through the loader, torch's global generator seeded before each batch."""
    count = 0
    set_seed(derive_seed(seed, "epoch", epoch, count))
    for batch in loader:
        yield batch
        count += 1
        set_seed(derive_seed(seed, "epoch", epoch, count))


def _generators(loader: Iterable[Batch]) -> list[torch.Generator]:
    """The generators of a `DataLoader`, its samplers among them."""
    sampler, batch_sampler = getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    owners = (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list(dict.fromkeys(generator for generator in found if isinstance(generator, torch.Generator)))


def _check_count(count: int, epoch: int) -> None:
    if count == 0 and epoch == 0:
        raise ValueError("loader yields no batch: give it at least one item.")
    if count == 0:
        raise ValueError(
            f"loader yields nothing in pass {epoch + 1}: it must be possible to go through it again, as with a "
            "DataLoader or a list; a generator can be gone through once."
        )
