"""Training, tuning and test sets by the hash of the text, so that the test set is the same in every run."""

from __future__ import annotations

__all__ = ["Splits", "split"]

import hashlib
from dataclasses import dataclass

from .examples import Examples


@dataclass(frozen=True)
class Splits:
    """Three disjoint sets of examples.

    Args:
        train: What a method is fitted to.
        tuning: What a setting or a temperature is chosen on.
        test: What is reported, and never chosen on.
    """

    train: Examples
    tuning: Examples
    test: Examples


def split(examples: Examples, *, train: int | None, tuning: int, test: int | None, seed: int) -> Splits:
    """Split examples by the hash of their text.

    Items are ranked by the sha256 of their text (and choices). The test set is taken from the low end, the
    tuning set from the high end, so each is the same for every seed and a larger one holds every smaller one.
    The training set is drawn by ``seed`` from what is left. Items with the same text never stand in two sets.
    Where the examples come with an official test part, the test set is taken from that part, the others from
    the rest.

    Tuning and test items come by rank, not in the order of the file, where labels may lie together: the first of
    them are a random sample. Training items keep the order of the file; a loader shuffles them.

    Args:
        examples: What to split.
        train: The number of training items, or None for all that is left.
        tuning: The number of tuning items.
        test: The number of test items, or None for all that may be taken.
        seed: Chooses the training items.

    Returns:
        The three sets.

    Raises:
        ValueError: If there are not enough items.
    """
    for name, size in {"train": train, "tuning": tuning, "test": test}.items():
        if size is not None and size < 0:
            raise ValueError(f"{name}={size} is negative: give the number of items")
    digests = [_digest(examples.key(item)) for item in range(len(examples))]
    ranked = sorted(range(len(examples)), key=lambda item: (digests[item], item))
    official = "test" in examples.parts

    test_pool = [i for i in ranked if not official or examples.parts[i] == "test"]
    test_items = _take(test_pool, test, "test", examples)
    # With an official test part even the test items that were not asked for stay out of training.
    taken = {digests[i] for i in (test_pool if official else test_items)}

    rest = [i for i in reversed(ranked) if digests[i] not in taken]
    tuning_items = _take(rest, tuning, "tuning", examples)
    taken |= {digests[i] for i in tuning_items}

    pool = [i for i in rest if digests[i] not in taken]
    pool.sort(key=lambda item: (_digest(f"{seed}:{digests[item]}"), item))
    train_items = _take(pool, train, "train", examples)
    return Splits(*(examples.select(items) for items in (sorted(train_items), tuning_items, test_items)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _take(pool: list[int], size: int | None, name: str, examples: Examples) -> list[int]:
    """Return the first items of a pool."""
    if size is not None and size > len(pool):
        raise ValueError(
            f"{name}={size} items were asked of {examples.name!r}, which has {len(examples)} items and "
            f"{len(pool)} left for this set: ask for at most {len(pool)}"
        )
    return pool if size is None else pool[:size]
