"""The size and the effective rank of updates, against dense products."""

import math

import numpy as np
import pytest
import torch

from bayeslora_pyro.diagnostics import summary, to_arviz
from bayeslora_pyro.diagnostics.updates import rank_of, singular_values, update_figures

from .fakes import FakePosterior, stacks, values


@pytest.mark.parametrize(
    ("singular", "rank"),
    [
        ([1, 1, 1, 1], 4),
        ([5, 0, 0], 1),
        ([0, 0], 0),
        ([3, 1], math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4))),
    ],
)
def test_effective_rank_of_known_values(singular, rank) -> None:
    given = torch.tensor(singular, dtype=torch.float64)
    assert float(rank_of(given)) == pytest.approx(rank)
    assert float(rank_of(7 * given)) == pytest.approx(rank)


def test_planted_fault_squares_of_singular_values() -> None:
    given = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert float(rank_of(given.square())) != pytest.approx(float(rank_of(given)), abs=0.1)


def test_singular_values_of_a_product() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5, *shape, generator=generator, dtype=torch.float64) for shape in ((3, 7), (6, 3)))
    a[0, 2] = a[0, 1]  # a product of rank 2
    found = singular_values(b.mT @ b, a @ a.mT).flip(-1)
    torch.testing.assert_close(found, torch.linalg.svdvals(b @ a)[:, :3], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("grouped", [False, True])
def test_figures_of_dense_updates(grouped) -> None:
    posterior = FakePosterior(grouped=grouped)
    draws = posterior.sample(4, 0)
    container = to_arviz(posterior, num_draws=4)
    ranks = values(container, "posterior", "update_rank")[0]
    for place, module in enumerate(posterior.stacks[0].adapters):
        factors = {
            stack.role: draws[f"{stack.name}.W"][:, stack.adapters.index(module)].double()
            for stack in posterior.stacks
            if module in stack.adapters
        }
        shares = torch.linalg.svdvals(factors["B"] @ factors["A"])[:, :2]
        shares = shares / shares.sum(-1, keepdim=True)
        np.testing.assert_allclose(ranks[:, place], (-(shares * shares.log()).sum(-1)).exp(), rtol=1e-6)
    assert "update_rank" in summary(container).index


def test_a_missing_factor_has_no_update() -> None:
    first, _ = stacks(2)
    assert update_figures({first.name: torch.zeros(1, 4, 2, 6)}, stacks(2)) == {}
