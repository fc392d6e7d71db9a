"""The tiers: which cells there are, and by which protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from bayeslora_pyro.bench.cells import FASTER, Cell, Protocol, Size
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.tasks import TASKS

__all__ = ["BASE", "MAIN", "TIERS", "Grid", "Job", "check_methods", "select_jobs"]

BASE = "base"
"""The base model as it is. A classifier has none: its fresh head knows nothing."""

MAIN = ("lora", "ensemble", "blob", "tfb", "laplace-lora", "bayesian-lora-mf", "bayesian-lora")
"""The methods of a short comparison."""


@dataclass(frozen=True)
class Job:
    """A cell and how it is done.

    Args:
        cell: The cell.
        protocol: The protocol.
    """

    cell: Cell
    protocol: Protocol


@dataclass(frozen=True)
class Grid:
    """All cells of some tasks, methods, sizes and seeds, with one protocol.

    Args:
        tasks: The tasks.
        models: The base models.
        methods: The methods.
        sizes: The numbers of training items.
        seeds: The seeds.
        protocol: The protocol.
    """

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    sizes: tuple[Size, ...]
    seeds: tuple[int, ...]
    protocol: Protocol

    def jobs(self) -> Iterator[Job]:
        """The jobs, a seed after another, so that a run that is cut off has whole comparisons."""
        for seed, size, task, model, method in product(
            self.seeds, self.sizes, self.tasks, self.models, self.methods
        ):
            if method != BASE or TASKS[task].kind == "choice":
                yield Job(Cell(task, model, method, size, seed), self.protocol)


ALL = (BASE, *METHODS)

MINILM = Protocol(dtype=FASTER)
SMOLLM2 = Protocol(
    dtype=FASTER,
    num_steps=300,
    batch_size=8,
    evaluation_batch_size=8,
    max_length=128,
    scoring="mean",
    num_tuning=100,
    num_test=300,
    num_shift=100,
    timed=3,
)
SMOKE = Protocol(
    num_steps=10,  # the fewest that a checkpoint ensemble takes
    batch_size=4,
    evaluation_batch_size=8,
    max_length=16,
    dtype="float32",
    num_tuning=8,
    num_test=12,
    num_shift=3,
    timed=2,
)
PUBLISHED = Protocol(
    num_steps=5000,
    batch_size=4,
    evaluation_batch_size=4,
    target_modules=("q_proj", "v_proj", "lm_head"),
    max_length=300,
    attention=None,
    scoring="letters",
    rate_scale=0.1,  # of LoRA's 1e-3, the published 1e-4
    schedule="linear",
    warmup=0.06,
    num_test=10_000,
    num_shift=10_000,
    timed=5,
)

SHORT = ("sentiment", "questions")
QUESTIONS = ("openbookqa", "arc_easy", "social_iqa")
HUB = ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-3.1-8B", "Qwen/Qwen3-8B-Base")
EIGHT, FOUR = (tuple(f"{name}@{bits}bit" for name in HUB) for bits in (8, 4))

TIERS: dict[str, tuple[Grid, ...]] = {
    "smoke": (Grid(("sentiment",), ("minilm",), ALL, (16,), (0,), SMOKE),),
    "cpu": (
        Grid(SHORT, ("minilm",), ALL, (400,), (0, 1, 2, 3, 4), MINILM),
        Grid(("spam",), ("minilm",), ALL, (400,), (0, 1, 2), MINILM),
        Grid(SHORT, ("minilm",), MAIN, (200, 1000, "all"), (0, 1, 2), MINILM),
        Grid(QUESTIONS, ("smollm2",), (BASE, *MAIN), (400,), (0, 1, 2), SMOLLM2),
    ),
    "gpu": (
        Grid(
            ("openbookqa", "arc_easy", "arc_challenge", "boolq"), EIGHT, ALL, ("all",), (0, 1, 2), PUBLISHED
        ),
        Grid(("openbookqa",), FOUR, (BASE, *MAIN), ("all",), (0, 1, 2), PUBLISHED),
    ),
}
"""The grids of each tier."""


def check_methods(methods: Sequence[str]) -> None:
    """Complains of a method that there is not."""
    for name in methods:
        if name not in ALL:
            raise ValueError(f"there is no method {name!r}: use some of {', '.join(ALL)}.")


def select_jobs(
    tier: str,
    *,
    tasks: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    sizes: Sequence[Size] | None = None,
    seeds: Sequence[int] | None = None,
    **changes: Any,
) -> list[Job]:
    """The jobs of a tier; what is given takes the place of the tier's own, in each of its grids.

    Args:
        tier: A key of :data:`TIERS`.
        tasks: The tasks. A grid keeps those of the kind of its own, and vanishes where there is none.
        models: The base models.
        methods: The methods.
        sizes: The numbers of training items.
        seeds: The seeds.
        changes: Fields of :class:`~bayeslora_pyro.bench.cells.Protocol`; None leaves one as it is.

    Raises:
        ValueError: If there is no such tier, task or method, or nothing is left to do.
    """
    if tier not in TIERS:
        raise ValueError(f"there is no tier {tier!r}: use one of {', '.join(TIERS)}.")
    check_methods(methods or ())
    for task in tasks or ():
        if task not in TASKS or TASKS[task].kind not in ("classification", "choice"):
            kinds = [name for name, row in TASKS.items() if row.kind in ("classification", "choice")]
            raise ValueError(f"there is no task {task!r} of classes or choices: use some of {kinds}.")
    given = {"models": models, "methods": methods, "sizes": sizes, "seeds": seeds}
    wanted: dict[str, Any] = {name: tuple(values) for name, values in given.items() if values is not None}
    jobs: dict[str, Job] = {}
    for grid in TIERS[tier]:
        own = replace(grid, tasks=_of_kind(grid, tasks), protocol=grid.protocol.changed(**changes), **wanted)
        for job in own.jobs():
            jobs.setdefault(job.cell.name, job)
    if not jobs:
        raise ValueError(f"no cell of tier {tier!r} is left: its tasks are {_tasks(tier)}.")
    return sorted(
        jobs.values(), key=lambda job: job.cell.seed
    )  # stable: the rest is in the order of the grids


def _of_kind(grid: Grid, tasks: Sequence[str] | None) -> tuple[str, ...]:
    """The tasks that take the place of those of a grid."""
    if tasks is None:
        return grid.tasks
    kinds = {TASKS[task].kind for task in grid.tasks}
    return tuple(task for task in tasks if TASKS[task].kind in kinds)


def _tasks(tier: str) -> str:
    return ", ".join(dict.fromkeys(task for grid in TIERS[tier] for task in grid.tasks))
