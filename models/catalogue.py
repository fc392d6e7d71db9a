"""The priors and the likelihoods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeslora_pyro.models.ard import ArdPrior
from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.models.choice import Choice
from bayeslora_pyro.models.gaussian import GaussianPrior, PointPrior
from bayeslora_pyro.models.global_inducing import GlobalInducingPrior
from bayeslora_pyro.models.inducing import InducingPrior
from bayeslora_pyro.models.likelihood import Likelihood
from bayeslora_pyro.models.likelihoods import Classification, NextToken, Regression
from bayeslora_pyro.models.matrix_normal import MatrixNormalPrior
from bayeslora_pyro.models.rank_space import RankSpacePrior
from bayeslora_pyro.models.relative_noise import RelativeNoisePrior
from bayeslora_pyro.models.sparse import HorseshoePrior, LaplacePrior

__all__ = ["LIKELIHOODS", "PRIORS", "look_up"]

PRIORS: dict[str, type[Prior]] = {
    "inducing": InducingPrior,
    "global_inducing": GlobalInducingPrior,
    "gaussian": GaussianPrior,
    "matrix_normal": MatrixNormalPrior,
    "ard": ArdPrior,
    "laplace": LaplacePrior,
    "horseshoe": HorseshoePrior,
    "rank_space": RankSpacePrior,
    "point": PointPrior,
    "relative_noise": RelativeNoisePrior,
}
"""The priors by name."""

LIKELIHOODS: dict[str, type[Likelihood]] = {
    "classification": Classification,
    "choice": Choice,
    "next_token": NextToken,
    "regression": Regression,
}
"""The likelihoods by name."""


def look_up(argument: str, value: Any, table: Mapping[str, type[Any]]) -> Any:
    """Turns a name into an object with its default settings; leaves an object alone."""
    if not isinstance(value, str):
        return value
    if value not in table:
        raise ValueError(f"{argument}={value!r} is not known. Choose one of {', '.join(table)}.")
    return table[value]()
