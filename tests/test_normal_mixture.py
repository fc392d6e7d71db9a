"""Mixtures of Gaussian matrices: their density, and the derivatives of their draws, by numerical integration."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily

from bayeslora_pyro.normal_mixture import NormalMixture

from .exact import close, rand

PARAMETERS = ("loc", "scale", "logits")
SHAPES = {"one entry": (2, 1, 1), "three components": (3, 1, 1), "two entries": (2, 1, 2)}


def make(*shape, seed=0):
    """A mixture with components about three deviations apart."""
    loc, scale = 1.5 * rand(*shape, seed=seed), 0.7 * (0.3 * rand(*shape, seed=seed + 1)).exp()
    parts = (loc, scale, rand(*shape[:-2], seed=seed + 2))
    return NormalMixture(*(part.requires_grad_() for part in parts))


def reference(mixture):
    components = dist.Normal(mixture.loc, mixture.scale).to_event(2)
    return MixtureSameFamily(Categorical(logits=mixture.logits), components)


def grid(mixture, points=321, reach=9.0):
    """Values that fill the space, and the volume of each."""
    axis = torch.linspace(-reach, reach, points if mixture.event_shape[-1] == 1 else 91, dtype=torch.float64)
    values = torch.cartesian_prod(*[axis] * mixture.event_shape[-1]).reshape(-1, *mixture.event_shape)
    return values, float(axis[1] - axis[0]) ** mixture.event_shape[-1]


def times(count=32):
    """The nodes and weights of an integral from 0 to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.tensor((nodes + 1) / 2), torch.tensor(weights / 2)


def gradients(loss, mixture):
    return torch.autograd.grad(loss, [getattr(mixture, name) for name in PARAMETERS])


def quadrature(mixture, function):
    """The mean of a function under the mixture, to be differentiated through the density."""
    values, volume = grid(mixture)
    return (mixture.log_prob(values).exp() * function(values)).sum() * volume


def pathwise(mixture, function):
    """The same with derivatives through the draws, with every draw there could be."""
    (values, volume), (nodes, weights) = grid(mixture), times()
    shape = len(nodes), len(values)
    drawn = mixture.attach(values.expand(len(nodes), *values.shape), nodes.unsqueeze(1).expand(shape))
    mass = mixture.log_prob(values).exp().detach() * volume
    return (weights.unsqueeze(1) * mass * function(drawn)).sum()


def smooth(value):
    return (torch.sin(value) + 0.3 * value.square()).sum((-2, -1)) + value.prod(-1).squeeze(-1)


def divergence(mixture):
    """The integrand of KL(q || N(0, 1)), which depends on the parameters itself."""
    return lambda value: mixture.log_prob(value) - dist.Normal(0.0, 1.0).log_prob(value).sum((-2, -1))


def check_pathwise(mixture, function):
    exact, ours = quadrature(mixture, function), pathwise(mixture, function)
    close(ours.detach(), exact.detach(), 1e-8)
    for actual, expected in zip(gradients(ours, mixture), gradients(exact, mixture), strict=True):
        close(actual, expected, 1e-6)


@pytest.mark.parametrize("name", SHAPES)
class TestDerivatives:
    def test_of_the_mean_of_a_function(self, name):
        check_pathwise(make(*SHAPES[name]), smooth)

    def test_of_the_divergence(self, name):
        mixture = make(*SHAPES[name])
        check_pathwise(mixture, divergence(mixture))


@pytest.mark.parametrize("name", ["one entry", "three components"])
class TestFaults:
    def test_components_as_selected_would_be_caught(self, name, monkeypatch):
        original = NormalMixture._responsibilities
        monkeypatch.setattr(
            NormalMixture,
            "_responsibilities",
            lambda self, value: torch.nn.functional.one_hot(original(self, value).argmax(-1)).double(),
        )
        with pytest.raises(AssertionError):
            check_pathwise(make(*SHAPES[name]), smooth)

    @pytest.mark.parametrize("factor", [0.0, -1.0, 0.9])
    def test_weights_that_move_otherwise_would_be_caught(self, name, factor, monkeypatch):
        original = NormalMixture._velocity_of_logits
        monkeypatch.setattr(
            NormalMixture, "_velocity_of_logits", lambda self, *args: factor * original(self, *args)
        )
        with pytest.raises(AssertionError):
            check_pathwise(make(*SHAPES[name]), smooth)


def test_draws_estimate_the_divergence_without_bias():
    mixture = make(2, 1, 1)
    torch.manual_seed(0)
    terms = divergence(mixture)(mixture.rsample((40_000,)))
    exact = quadrature(mixture, divergence(mixture))
    assert abs(terms.mean() - exact) < 4 * terms.std() / len(terms) ** 0.5
    estimates = [gradients(divergence(mixture)(mixture.rsample((1000,))).mean(), mixture) for _ in range(40)]
    for parts, truth in zip(zip(*estimates, strict=True), gradients(exact, mixture), strict=True):
        sample = torch.stack(parts).flatten(1)
        assert ((sample.mean(0) - truth.flatten()).abs() < 4 * sample.std(0) / len(sample) ** 0.5).all()


class TestDensity:
    @pytest.mark.parametrize("shape", [(2, 2, 3), (4, 3, 1, 2), (2, 3, 2, 2, 2)])
    def test_is_that_of_torch(self, shape):
        mixture, truth = make(*shape), reference(make(*shape))
        value = rand(5, *mixture.batch_shape, *mixture.event_shape, seed=8)
        close(mixture.log_prob(value), truth.log_prob(value), 1e-9)
        close(mixture.mean, truth.mean, 1e-9)
        close(mixture.variance, truth.variance, 1e-9)

    def test_draws_are_its_own(self):
        mixture = make(3, 2, 2)
        drawn = mixture.rsample((20_000,)).detach()
        for power in (1, 2):
            sample, moment = drawn**power, mixture.mean if power == 1 else mixture.variance + mixture.mean**2
            assert ((sample.mean(0) - moment).abs() < 4.5 * sample.std(0) / len(sample) ** 0.5).all()

    def test_expanded(self):
        mixture, value = make(4, 2, 2, 3), rand(3, 4, 2, 3)
        expanded = mixture.expand((3, 4))
        assert expanded.rsample((5,)).shape == (5, 3, 4, 2, 3)
        assert expanded.mean.shape == expanded.variance.shape == (3, 4, 2, 3)
        close(expanded.log_prob(value), mixture.log_prob(value))

    def test_far_apart_and_narrow(self):
        mixture = NormalMixture(
            torch.tensor([-1e3, 1e3])[:, None, None], torch.full((2, 1, 1), 1e-3), torch.zeros(2)
        )
        for part in (mixture.loc, mixture.scale, mixture.logits):
            part.requires_grad_()
        drawn = mixture.rsample((100,))
        assert mixture.log_prob(drawn).isfinite().all()
        assert all(part.isfinite().all() for part in gradients(mixture.log_prob(drawn).sum(), mixture))


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"loc has shape \(2, 1, 1\).*logits \(3,\)"):
        NormalMixture(rand(2, 1, 1), rand(2, 1, 1).exp(), rand(3))
