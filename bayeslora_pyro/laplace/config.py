"""The settings of a Laplace approximation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bayeslora_pyro.config import PREDICTIVES

__all__ = ["LaplaceConfig"]


@dataclass(frozen=True)
class LaplaceConfig:
    """How a Laplace approximation is made.

    Args:
        structure: What is kept of the curvature: `"kronecker"` factors, or the `"diagonal"`.
        precision: The precision of the prior: the one that maximises the `"evidence"` on the training data, or the NLL
            of predictions on `"tuning"` data, or a number.
        per: Whether `"all"` factors share one precision, or those of a `"role"` or of a `"layer"`, or each `"factor"`
            has one of its own. Tuning data decide on one for all.
        modules: The adapted modules that are random, as a pattern of shell wildcards, or `"last"` for those of the last
            layer; the others stay points. All by default.
        fisher: The Fisher information of the likelihood: `"exact"`, with a backward pass for each class, or so many
            labels drawn for each item.
        sharing: How tokens share in Kronecker factors, `"expand"` or `"reduce"`.
        rank: The number of eigenvectors of a side of a Kronecker factorization that is not kept whole.
        sketch: How many it has while the data are gone through.
        max_dense: The largest side that is kept whole.
        predictive: How the posterior predicts, one of `PREDICTIVES`.
        seed: The seed of the order of the data and of labels that are drawn.
    """

    structure: Literal["kronecker", "diagonal"] = "kronecker"
    precision: Literal["evidence", "tuning"] | float = "evidence"
    per: Literal["all", "role", "layer", "factor"] = "all"
    modules: str | None = None
    fisher: Literal["exact"] | int = "exact"
    sharing: Literal["expand", "reduce"] = "expand"
    rank: int = 10
    sketch: int = 40
    max_dense: int = 1024
    predictive: str = "joint"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (
            ("structure", ("kronecker", "diagonal")),
            ("per", ("all", "role", "layer", "factor")),
            ("sharing", ("expand", "reduce")),
            ("predictive", PREDICTIVES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} should be one of {', '.join(known)}, and is {getattr(self, name)!r}."
                )
        if isinstance(self.precision, str) and self.precision not in ("evidence", "tuning"):
            raise ValueError(
                f"precision should be 'evidence', 'tuning' or a positive number, and is {self.precision!r}."
            )
        if not isinstance(self.precision, str) and not 0 < self.precision < float("inf"):
            raise ValueError(f"precision should be positive, and is {self.precision}.")
        if self.fisher != "exact" and not (isinstance(self.fisher, int) and self.fisher >= 1):
            raise ValueError(
                f"fisher should be 'exact' or at least 1 label for each item, and is {self.fisher!r}."
            )
        for name in ("rank", "sketch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} should be at least 1, and is {getattr(self, name)}.")
