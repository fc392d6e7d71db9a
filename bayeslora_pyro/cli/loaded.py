"""A finished run, opened: its posterior, its base model, its data."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from bayeslora_pyro.cli.data import RunData, load_run_data, load_shift, set_name
from bayeslora_pyro.cli.errors import CommandError
from bayeslora_pyro.cli.language import Language, load_language, load_members
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import working
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.tasks import Examples, split

__all__ = ["LoadedRun"]


class LoadedRun:
    """What `bayeslora fit` wrote; the data, the base model and the posterior are read when they are first needed.

    Args:
        plan: What to do with it.
    """

    def __init__(self, plan: Plan) -> None:
        self.folder = plan.folder
        self.record = plan.record or {}
        self.device = plan.options["device"]

    @cached_property
    def data(self) -> RunData:
        """The data of the run, split as for the fit."""
        with working("reading the data"):
            return load_run_data(self.record["options"], self.record["data"])

    @cached_property
    def language(self) -> Language:
        """The base model."""
        options, data = {**self.record["options"], "device": self.device}, self.record["data"]
        with working(f"loading {options['model']}"):
            return load_language(options, data["kind"], len(data["classes"]), self.record["max_length"])

    @cached_property
    def members(self) -> list[Posterior]:
        """The posterior, or the members of the ensemble; of a regression, in the units of the targets."""
        with working("loading the posterior"):
            return load_members(self.folder, self.language, self.record["data"]["kind"])

    @property
    def posterior(self) -> Posterior | Ensemble:
        """The posterior, or the ensemble."""
        return self.members[0] if len(self.members) == 1 else Ensemble(self.members)

    def loader(self, examples: Examples) -> Any:
        """Batches of examples, those of like length together."""
        return self.language.loader(examples, self.record["options"]["batch_size"])

    def test_set(self, cure: str) -> dict[str, Examples]:
        """The test set, by its name.

        Args:
            cure: What to do where there is none.
        """
        examples = self.data.splits.test
        if len(examples) == 0:
            raise CommandError(f"{self.folder} has no test set (it was fitted with --test 0): {cure}")
        return {self.record["data"]["name"]: examples}

    def shifts(self, options: Mapping[str, Any], size: int, taken: set[str]) -> dict[str, Examples]:
        """The sets to compare with, by the names they were given, each cut to a size."""
        sets: dict[str, Examples] = {}
        limit = options["shift_items"] or size
        for given in options["shift"] or ():
            name, examples = self.other_set(given, "--shift")
            if name in taken | set(sets):
                raise CommandError(f"--shift {given}: there is already a set called {name!r}: give each once")
            sets[name] = _first(examples, limit)
        return sets

    def other_set(self, given: str, argument: str) -> tuple[str, Examples]:
        """A task or a file that is like the data of the run, with its name."""
        examples = load_shift(given, self.record["options"], self.record["data"], argument)
        seen = self._count_trained(examples)
        if seen:
            warnings.warn(f"{seen} of the {len(examples)} items of {given} were trained on", stacklevel=2)
        return set_name(given), examples

    def _count_trained(self, examples: Examples) -> int:
        try:
            train = self.data.splits.train
        except CommandError:
            warnings.warn("the data of the fit cannot be read, to see what was trained on", stacklevel=3)
            return 0
        trained = {train.key(item) for item in range(len(train))}
        return sum(examples.key(item) in trained for item in range(len(examples)))


def _first(examples: Examples, limit: int) -> Examples:
    """The first items by the hash of their text, so the same in every run, of the test part where there is one."""
    size = examples.parts.count("test") if "test" in examples.parts else len(examples)
    return split(examples, train=0, tuning=0, test=min(limit, size), seed=0).test
