"""The sets of a cell: what it is fitted to, tuned on, tested on, and its shifts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.tasks import TASKS, Examples, load_task, split

__all__ = ["TEST", "TUNING", "Sets", "load_sets"]

TUNING, TEST = "tuning", "test"
"""The names of the sets that every cell has; the others have those of their tasks."""


@dataclass(frozen=True)
class Sets:
    """The sets of a cell.

    Args:
        train: What the method is fitted to.
        evaluated: What is predicted, by name: the tuning set, the test set, and each shift.
    """

    train: Examples
    evaluated: dict[str, Examples]

    @property
    def num_outcomes(self) -> int:
        """The number of classes, or the largest number of choices of all sets."""
        return max(examples.num_outcomes for examples in (self.train, *self.evaluated.values()))


def load_sets(cell: Cell, protocol: Protocol, data_dir: Path | None = None) -> Sets:
    """Loads the sets of a cell.

    Only the training set depends on the seed. Where a set has an official test part, the test items are of it.

    Args:
        cell: The cell.
        protocol: The protocol.
        data_dir: A folder of local files, for the tasks that are not packaged.
    """
    examples = load_task(cell.task, data_dir=data_dir)
    own = split(
        examples,
        train=None if cell.size == "all" else cell.size,
        tuning=protocol.num_tuning,
        test=min(protocol.num_test, _num_testable(examples)),
        seed=cell.seed,
    )
    shifts = {name: load_task(name, data_dir=data_dir) for name in TASKS[cell.task].shifts}
    tests = {
        name: split(
            shift, train=0, tuning=0, test=min(protocol.most_shifted, _num_testable(shift)), seed=0
        ).test
        for name, shift in shifts.items()
    }
    return Sets(own.train, {TUNING: own.tuning, TEST: own.test, **tests})


def _num_testable(examples: Examples) -> int:
    return examples.parts.count("test") if "test" in examples.parts else len(examples)
