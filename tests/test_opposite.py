"""Draws in opposite pairs: each is a draw, both lie about the mean, and what has no opposite is independent."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import ExpTransform
from torch.distributions import Normal

from bayeslora_pyro import Posterior, draws, opposite
from bayeslora_pyro.distributions import InducedNormal
from bayeslora_pyro.draws import mean_of
from bayeslora_pyro.guides import GUIDES, FlowGuide
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.normal_mixture import NormalMixture
from bayeslora_pyro.opposite import drawing

from .exact import close, rand
from .flows import DIM, FACTORS, FLOWS, ROWS, stack
from .small_priors import ALL
from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")

WITHOUT = {"mixture", "dropout", "delta", "amortised_noise", "flow"}
"""The families whose factors have no opposite, are points, or go through a flow, which has a test of its own."""


def posterior_of(prior, guide):
    model = BayesianLora(tiny_bert(hidden=4, num_layers=1, dtype=torch.float64), ALL[prior]())
    return Posterior(model, GUIDES[guide](model))


AFFINE = [
    (prior, guide)
    for prior in ("gaussian", "laplace", "inducing")
    for guide in GUIDES
    if guide not in WITHOUT and (prior, guide) != ("inducing", "laplace")
]
"""Where factors are an affine function of the noise: the laplace guide is for factors themselves."""


def check_opposite(prior, guide):
    """With the same noise e, the draws of a pair are c + M e and c − M e."""
    posterior = posterior_of(prior, guide)
    mean = posterior.mean_adapter()
    for name, (first, second, third, _) in posterior.weights(4).items():
        close((first + second) / 2, mean[name])
        assert (first - mean[name]).abs().max() > 1e-3
        assert (first - third).abs().max() > 1e-3


@pytest.mark.parametrize(("prior", "guide"), AFFINE)
def test_the_opposite_lies_on_the_other_side_of_the_mean(prior, guide):
    check_opposite(prior, guide)


def test_planted_fault_reflection_about_zero(monkeypatch):
    monkeypatch.setattr(opposite, "_opposite", lambda q: -q.rsample())
    with pytest.raises(AssertionError):
        check_opposite("gaussian", "full_rank")


@pytest.mark.parametrize("kept", [InducedNormal, Normal])
def test_planted_fault_only_one_of_two_sites_reflected(kept, monkeypatch):
    right = opposite._opposite
    monkeypatch.setattr(opposite, "_opposite", lambda q: q.rsample() if isinstance(q, kept) else right(q))
    with pytest.raises(AssertionError):
        check_opposite("inducing", "mean_field")


@pytest.mark.parametrize("transform", [ExpTransform(), dist.transforms.AffineTransform(1.0, 3.0)])
def test_what_a_transform_is_given_is_reflected(transform):
    base = dist.Normal(rand(2, 3), rand(2, 3, seed=1).exp()).to_event(2)
    q = dist.TransformedDistribution(base, [transform])
    draws = []
    for draw in (0, 1):
        with drawing(3, draw):
            draws.append(pyro.sample("x", q))
    close(transform.inv(draws[0]) + transform.inv(draws[1]), 2 * base.mean)


def check_mean_through(transform, expected, tolerance):
    """The mean of what comes out of a transform has nothing of what is odd in the noise."""
    base = dist.Normal(rand(2, 3), 0.3 * rand(2, 3, seed=1).exp()).to_event(2)
    with local_rng("mean"):
        mean = mean_of(dist.TransformedDistribution(base, [transform]))
    torch.testing.assert_close(mean, expected(base), rtol=tolerance, atol=tolerance)


THROUGH = [
    (dist.transforms.AffineTransform(1.0, 3.0), lambda base: 1 + 3 * base.mean, 1e-12),
    (ExpTransform(), lambda base: (base.mean + base.variance / 2).exp(), 0.06),
]


THROUGH_FLOWS = (
    "affine_autoregressive",
    "affine_coupling",
    "planar",
    "radial",
    "spline",
    "spline_coupling",
    "sylvester",
)


@pytest.mark.parametrize(("transform", "expected", "tolerance"), THROUGH)
def test_a_mean_through_a_transform(transform, expected, tolerance):
    check_mean_through(transform, expected, tolerance)


def check_mean_through_a_flow(name):
    """Within .025 deviations of the mean of 40,000 draws: as many independent draws as there are leave .031."""
    flow = stack(FLOWS[name])
    q = dist.TransformedDistribution(dist.Normal(rand(FACTORS, ROWS, DIM), 1.0).to_event(2), [flow])
    with local_rng("mean"), torch.no_grad():
        many, mean = q.sample((40_000,)), mean_of(q)
    assert ((mean - many.mean(0)) / many.std(0)).square().mean().sqrt() < 0.025


@pytest.mark.parametrize("name", THROUGH_FLOWS)
def test_a_mean_through_a_flow(name):
    check_mean_through_a_flow(name)


def independent(distribution, num_pairs):
    return distribution.rsample((2 * num_pairs,))


def test_planted_fault_a_mean_of_independent_draws(monkeypatch):
    monkeypatch.setattr(draws, "opposite_pairs", independent)
    for check in (lambda: check_mean_through(*THROUGH[0]), lambda: check_mean_through_a_flow("planar")):
        with pytest.raises(AssertionError):
            check()


def test_of_a_flow_too():
    model = BayesianLora(tiny_bert(hidden=4, num_layers=1, dtype=torch.float64), "gaussian")
    guide = FlowGuide(model, transform="planar")
    for parameter in guide.parameters():
        with torch.no_grad():
            parameter.add_(0.3 * rand(*parameter.shape, seed=5))
    drawn = Posterior(model, guide).sample(2)
    stack = guide.stacks[0]
    before = []
    for draw in (0, 1):
        with drawing(0, draw), torch.no_grad():
            before.append(guide.get_base_dist(stack).rsample() if draw == 0 else None)
    reflected = 2 * guide.get_base_dist(stack).mean - before[0]
    flow = guide.get_transform(stack)
    name = model.prior_of(stack).site(stack, str(model.prior_of(stack).latent))
    with torch.no_grad():
        torch.testing.assert_close(drawn[name][0], flow(before[0]))
        torch.testing.assert_close(drawn[name][1], flow(reflected))
    assert not torch.allclose(drawn[name].mean(0), guide.get_base_dist(stack).mean)


def mixture():
    loc = torch.tensor([-5.0, 5.0]).reshape(2, 1, 1).double()
    return NormalMixture(loc, torch.full_like(loc, 0.1), torch.tensor([0.0, 1.0]).double())


def test_what_has_no_opposite_is_independent_and_later_sites_keep_their_noise():
    def program():
        return pyro.sample("a", mixture()), pyro.sample("b", dist.Normal(torch.tensor(2.0).double(), 1.0))

    pairs = []
    for seed in range(300):
        pair = []
        for draw in (0, 1):
            with drawing(seed, draw):
                pair.append(torch.stack([value.flatten()[0] for value in program()]))
        pairs.append(torch.stack(pair))
    first, second = torch.stack(pairs).unbind(1)
    close(first[:, 1] + second[:, 1], torch.full((300,), 4.0).double())
    on = (first[:, 0] > 0).double(), (second[:, 0] > 0).double()
    share = torch.tensor(1.0).sigmoid().item()
    for side in on:
        assert side.mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / 300) ** 0.5)
    assert abs(torch.corrcoef(torch.stack(on))[0, 1].item()) < 4 / 300**0.5


def test_pairs_take_the_odd_part_out_of_an_average():
    """The mean of the draws of a pair is the mean of the posterior, and predictions with two draws say so."""
    model = BayesianLora(tiny_bert(dtype=torch.float64), {"A": "gaussian", "B": "point"})
    posterior = Posterior(model, GUIDES["mean_field"](model, scale=1e-4))
    name = next(stack.name for stack in posterior.stacks if stack.role == "A")
    close(posterior.weights(2)[name].mean(0), posterior.mean_adapter()[name])
    with torch.no_grad():
        model.priors["B"].get_parameter(next(n for n, _ in model.priors["B"].named_parameters())).add_(0.5)
    scores = posterior.predict([tiny_batch()], 4).log_probs
    (first, second, third, _), centre = scores, scores.mean(0)
    assert (first - second).abs().max() > 100 * (first + second - 2 * centre).abs().max()
    assert (first - third).abs().max() > 100 * (first + second - 2 * centre).abs().max()
