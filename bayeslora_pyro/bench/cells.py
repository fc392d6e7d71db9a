"""A cell of the benchmark, and the protocol by which it is fitted and evaluated."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

__all__ = ["FASTER", "NUM_DRAWS", "Cell", "Protocol", "Size", "short_name"]

NUM_DRAWS = (1, 4, 10, 16)
"""With how many draws every sampling method predicts: the first ones of one set, which is that of the last number."""

FASTER = "faster"
"""The dtype of a base model in which this processor is faster; a run settles which that is."""

Size: TypeAlias = int | Literal["all"]
"""A number of training items, or all that are left."""

_BITS = re.compile(r"@(\d+)bit$")


@dataclass(frozen=True)
class Cell:
    """One fit and its evaluation.

    Args:
        task: The task, a key of `TASKS`.
        model: The base model: a packaged one, a name on the hub, or a folder; quantised with `@8bit` or `@4bit` behind.
        method: A key of `METHODS`, or `"base"` for the base model as it is.
        size: The number of training items.
        seed: The seed of the training items, the start and all draws.
    """

    task: str
    model: str
    method: str
    size: Size
    seed: int

    def __post_init__(self) -> None:
        if self.bits not in (None, 4, 8):
            raise ValueError(f"model={self.model!r} should end in @8bit, @4bit or neither.")
        if self.size != "all" and (type(self.size) is not int or self.size < 1):
            raise ValueError(f"size should be a number of training items or 'all', and is {self.size!r}.")

    @property
    def base_model(self) -> str:
        """The name of the base model, without how it is quantised."""
        return _BITS.sub("", self.model)

    @property
    def bits(self) -> int | None:
        """How many bits a parameter of a quantised base model has; None for one as it is."""
        found = _BITS.search(self.model)
        return int(found[1]) if found else None

    @property
    def name(self) -> str:
        """The name of its folder."""
        parts = (self.task, short_name(self.model), str(self.size), self.method, f"seed{self.seed}")
        return "_".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts)


@dataclass(frozen=True)
class Protocol:
    """How a cell is fitted and evaluated; the same for all methods that are compared.

    Args:
        num_steps: The number of optimizer steps, after which the fit ends: no step is chosen.
        batch_size: The number of items in a training batch.
        r: The rank of LoRA.
        lora_alpha: The scaling of LoRA is `lora_alpha / r`.
        target_modules: What LoRA adapts; None for what is usual for the base model.
        max_length: The longest text in tokens.
        dtype: Of the base model, a name or :data:`FASTER`; None for the checkpoint's own.
        attention: How `transformers` computes attention; None for its own choice.
        scoring: How choices are told apart: by the log-likelihood of the `"options"`, by its `"mean"` over the tokens
            of each, or by `"letters"`.
        rate_scale: What the step sizes of every method are multiplied with.
        schedule: How step sizes go on; None for the method's own.
        warmup: The share of the steps over which the step sizes grow from zero.
        num_tuning: The number of tuning items, the only ones that a temperature sees.
        num_test: The number of test items at most.
        num_shift: The number of items of each shift at most; None for three fifths of the test items.
        evaluation_batch_size: The number of items in a batch of evaluation.
        timed: How many steps and predictions are timed, each beside one of plain LoRA.
        blob_compat: Whether to repeat quirks of the published evaluation, which move numbers; see docs/benchmark.md.
    """

    num_steps: int = 600
    batch_size: int = 16
    r: int = 8
    lora_alpha: int = 16
    target_modules: tuple[str, ...] | None = None
    max_length: int = 64
    dtype: str | None = None
    attention: str | None = "eager"
    scoring: Literal["options", "mean", "letters"] = "options"
    rate_scale: float = 1.0
    schedule: Literal["constant", "linear", "cosine"] | None = None
    warmup: float = 0.0
    num_tuning: int = 400
    num_test: int = 1000
    num_shift: int | None = None
    evaluation_batch_size: int = 64
    timed: int = 5
    blob_compat: bool = False

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "num_tuning", "num_test", "evaluation_batch_size", "timed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, and is {getattr(self, name)}.")
        if self.scoring not in ("options", "mean", "letters"):
            raise ValueError(f"scoring should be 'options', 'mean' or 'letters', and is {self.scoring!r}.")

    @property
    def most_shifted(self) -> int:
        """The number of items of each shift at most."""
        return max(1, self.num_test * 3 // 5) if self.num_shift is None else self.num_shift

    def changed(self, **changes: Any) -> Protocol:
        """The protocol with those fields changed that are not None."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def record(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def of(cls, record: dict[str, Any]) -> Protocol:
        """The protocol of a record."""
        known: dict[str, Any] = {field.name: record[field.name] for field in fields(cls)}
        if known["target_modules"] is not None:
            known["target_modules"] = tuple(known["target_modules"])
        return cls(**known)


def short_name(model: str) -> str:
    """The name of a base model without the folder that it lies in."""
    folder = Path(_BITS.sub("", model))
    return folder.resolve().name + model.removeprefix(str(folder)) if folder.is_dir() else model
