"""Dropout as a distribution over factors: its moments, its mass, its divergence, and reproducible draws."""

import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from bayeslora_pyro import BayesianLora, GaussianPrior, Posterior, to_arviz
from bayeslora_pyro.diagnostics import khat
from bayeslora_pyro.guides import DropoutGuide
from bayeslora_pyro.guides.dropout import ColumnDropout

from .tiny import tiny_batch, tiny_bert

RATE = 0.3
LOC = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.5]], dtype=torch.float64)


def atoms() -> tuple[torch.Tensor, torch.Tensor]:
    """All matrices that can be drawn, and their masses, by going through the masks."""
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    masses = (masks * (1 - RATE) + (1 - masks) * RATE).prod(-1)
    return LOC / (1 - RATE) * masks[:, None], masses


def divergence(loc: torch.Tensor, scale: float = 0.7) -> torch.Tensor:
    return kl_divergence(ColumnDropout(loc, RATE), dist.Normal(torch.full_like(loc, 0.1), scale).to_event(2))


def test_moments_and_masses_are_those_of_the_atoms() -> None:
    q, (values, masses) = ColumnDropout(LOC, RATE), atoms()
    assert masses.sum().item() == pytest.approx(1)
    mean = (masses[:, None, None] * values).sum(0)
    torch.testing.assert_close(q.mean, mean)
    torch.testing.assert_close(q.variance, (masses[:, None, None] * (values - mean).square()).sum(0))
    torch.testing.assert_close(q.log_prob(values), masses.log())
    assert q.log_prob(LOC).item() == -math.inf  # unscaled, as dropout without its division would draw it


def test_draws_are_atoms_as_often_as_their_masses_say() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = ColumnDropout(LOC, RATE).expand([2]).rsample((4000,)).flatten(0, 1)
    values, masses = atoms()
    hits = (draws[:, None] == values).flatten(2).all(-1)
    assert bool(hits.any(-1).all())
    torch.testing.assert_close(hits.double().mean(0), masses, atol=0.02, rtol=0)


def test_divergence_is_the_sum_over_the_atoms_and_its_gradient_a_weight_decay() -> None:
    values, masses = atoms()
    prior = dist.Normal(torch.full_like(LOC, 0.1), 0.7).to_event(2)
    torch.testing.assert_close(divergence(LOC), (masses * (masses.log() - prior.log_prob(values))).sum())
    loc = LOC.clone().requires_grad_()
    kl_divergence(ColumnDropout(loc, RATE), dist.Normal(torch.zeros_like(loc), 0.7).to_event(2)).backward()
    torch.testing.assert_close(loc.grad, LOC / ((1 - RATE) * 0.7**2))
    wrong = LOC * (1 - RATE) / 0.7**2  # the decay of matrices that are not divided by the share that is kept
    assert not torch.allclose(loc.grad, wrong)


def test_a_column_of_zeros_has_nothing_to_drop() -> None:
    loc = LOC * torch.tensor([1.0, 0.0, 1.0])
    q = ColumnDropout(loc, RATE)
    assert q.log_prob(loc / (1 - RATE)).exp().item() == pytest.approx((1 - RATE) ** 2)
    less = ColumnDropout(loc[:, [0, 2]], RATE)
    normal = dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0)
    rest = -normal.log_prob(torch.zeros(2, dtype=torch.float64)).sum()
    kl, smaller = (kl_divergence(each, normal.expand(each.event_shape).to_event(2)) for each in (q, less))
    torch.testing.assert_close(kl, smaller + rest)


def posterior() -> Posterior:
    model = BayesianLora(tiny_bert(), {"A": GaussianPrior(), "B": "point"}, num_data=5)
    return Posterior(model, DropoutGuide(model, rate=0.5))


def test_a_draw_is_a_function_of_seed_and_index_however_draws_share_passes() -> None:
    fitted, batch = posterior(), tiny_batch()
    tiled = fitted.predict([batch], 4, seed=3, memory_budget=2**30).log_probs
    torch.testing.assert_close(fitted.predict([batch], 4, seed=3, memory_budget=1).log_probs, tiled)
    assert torch.equal(fitted.weights(1, 3, first=2)["A_2x16"][0], fitted.weights(4, 3)["A_2x16"][2])
    assert len({tuple(row) for row in fitted.weights(4, 3)["A_2x16"].ne(0).any(-2).flatten(1).tolist()}) == 4
    assert torch.equal(fitted.mean_adapter()["A_2x16"], fitted.model.lora_weights()["A_2x16"])


def test_k_hat_is_refused_where_there_is_no_density() -> None:
    container = to_arviz(posterior(), [tiny_batch()], num_draws=30)
    with pytest.raises(ValueError, match="no density"):
        khat(container)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_bad_rates_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate should be at least 0 and less than 1, and is {rate}"):
        DropoutGuide(posterior().model, rate=rate)
