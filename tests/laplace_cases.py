"""What tests of Laplace approximations share: a classifier, data, and what is read off a posterior."""

from typing import Any

import pytest
import torch

from bayeslora_pyro import BayesianLora, Posterior
from bayeslora_pyro.curvature import score_moments
from bayeslora_pyro.isolation import evaluating

from .tiny import tiny_batch, tiny_bert

__all__ = ["DOUBLE", "check_alike", "classifier", "data", "facts", "moments"]

DOUBLE = torch.float64


def classifier(**options: Any) -> BayesianLora:
    return BayesianLora(tiny_bert(dtype=DOUBLE, **options), "point", num_data=15)


def data(**options: Any) -> list[dict[str, Any]]:
    return [tiny_batch(seed=seed, **options) for seed in range(3)]


def moments(posterior: Posterior, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean and the covariance of the scores of a batch."""
    random = [s for s in posterior.stacks if posterior.model.prior_of(s).latent is not None]
    with evaluating(posterior.model.adapter.peft_model, posterior.model, posterior.guide):
        gaussians = {stack.name: posterior.guide.get_posterior(stack) for stack in random}
        return score_moments(posterior.model, gaussians, posterior.mean_adapter(), batch)


def facts(posterior: Posterior) -> dict[str, Any]:
    found: dict[str, Any] = posterior.metadata["laplace"]
    return found


def check_alike(found: Posterior, wanted: Posterior, tolerance: float = 1e-9) -> None:
    for name, value in facts(wanted).items():
        same = value if isinstance(value, str) else pytest.approx(value, rel=tolerance)
        assert facts(found)[name] == same, name
