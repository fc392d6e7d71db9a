"""A stack of flows: what it remembers and forgets, what it learns, what it refuses."""

import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.distributions.torch_transform import ComposeTransformModule

from bayeslora_pyro.transforms import (
    ConditionedTransform,
    Inverse,
    MatrixTransform,
    Permutation,
    StackedTransform,
    affine_autoregressive,
    affine_coupling,
    batch_norm,
    block_autoregressive,
    householder,
    inverse_autoregressive,
    iterated,
    neural_autoregressive,
    permute,
    planar,
    polynomial,
    radial,
    spline,
    spline_autoregressive,
    spline_coupling,
    sylvester,
    zuko_maf,
    zuko_naf,
    zuko_nsf,
)

from .exact import perturb
from .flows import DIM, FACTORS, ROWS, check_log_det, stack, value
from .test_transforms_pyro import pyro_affine


def test_elementwise_affine_flow_has_the_closed_form_kl():
    stacked = stack(affine_autoregressive, perturbed=False)
    last = stacked.copies.transform.arn.layers[-1]
    shift, log_scale = value(FACTORS, 1, DIM), 0.3 * value(FACTORS, 1, DIM, seed=3)
    with torch.no_grad():  # the weights are zero, so the biases are all there is
        last.bias.copy_(torch.cat([shift, log_scale], -1).squeeze(-2))
    loc, scale = value(FACTORS, ROWS, DIM, seed=4), 0.1 + value(FACTORS, ROWS, DIM, seed=5).abs()

    flow = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(2), [stacked])
    prior = dist.Normal(torch.zeros_like(loc), 1.0).to_event(2)
    # The one-draw estimate is quadratic in the noise, so its mean over noise +1 and -1 is its expectation.
    estimates = []
    for noise in (1.0, -1.0):
        draw = stacked(loc + noise * scale)
        estimates.append(flow.log_prob(draw) - prior.log_prob(draw))

    a = log_scale.exp()
    truth = torch.distributions.kl_divergence(dist.Normal(a * loc + shift, a * scale).to_event(2), prior)
    torch.testing.assert_close(torch.stack(estimates).mean(0), truth, rtol=1e-12, atol=0)


def test_factors_draw_their_own_orders_and_networks():
    state = StackedTransform(iterated(2, affine_coupling), 8, 9).state_dict()
    state |= StackedTransform(affine_autoregressive, 8, 9).state_dict()
    drawn = [
        tensor for name, tensor in state.items() if "permutation" in name or name.endswith("layers.0.weight")
    ]
    assert len(drawn) == 6
    for tensor in drawn:
        assert len(tensor.flatten(1).unique(dim=0)) == 8


def test_forgets_when_parameters_change():
    stacked = stack(affine_autoregressive)
    x = value(FACTORS, ROWS, DIM)
    y = stacked(x)
    assert stacked(x) is y
    perturb(stacked)
    fresh = StackedTransform(affine_autoregressive, FACTORS, DIM).double()
    fresh.load_state_dict(stacked.state_dict())
    assert torch.equal(stacked(x), fresh(x))
    assert not torch.equal(stacked(x), y)
    torch.testing.assert_close(stacked.inv(y), fresh.inv(y), rtol=0, atol=0)


@pytest.mark.parametrize("vectorize", [None, True, False])
def test_keeps_no_tensor_of_the_call(vectorize):
    stacked = stack(iterated(2, sylvester), vectorize=vectorize)
    stacked(value(FACTORS, ROWS, DIM))
    kept = [
        name
        for module in stacked.copies.modules()
        for name, kept in vars(module).items()
        if isinstance(kept, torch.Tensor) or (name == "_cached_x_y" and kept != (None, None))
    ]
    assert kept == []


def test_an_optimizer_trains_the_flow_to_a_target():
    stacked = stack(affine_autoregressive, perturbed=False)
    base = dist.Normal(torch.zeros(FACTORS, ROWS, DIM, dtype=torch.float64), 1.0).to_event(2)
    flow = dist.TransformedDistribution(base, [stacked])
    target = dist.Normal(
        torch.tensor([1.0, -1.0, 0.0]).double().reshape(3, 1, 1).expand(3, ROWS, DIM), 0.5
    ).to_event(2)
    optimizer = torch.optim.Adam(stacked.parameters(), lr=0.05)
    for step in range(80):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            draw = flow.rsample((16,))
        loss = (flow.log_prob(draw) - target.log_prob(draw)).mean(0)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert loss.abs().max() < 0.3  # from about 10 nats


class TestPreimage:
    @pytest.mark.parametrize("factory", [permute, affine_autoregressive, zuko_maf])
    def test_is_the_inverse(self, factory):
        stacked = stack(factory)
        x = value(FACTORS, ROWS, DIM)
        torch.testing.assert_close(stacked.preimage(stacked(x)), x, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("factory", [neural_autoregressive, polynomial, zuko_naf])
    def test_is_found_without_an_inverse(self, factory):
        stacked = stack(factory, perturbed=False)
        x = value(FACTORS, ROWS, DIM)
        torch.testing.assert_close(stacked.preimage(stacked(x)), x, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("factory", [sylvester, spline_coupling, block_autoregressive])
    def test_at_the_identity_it_is_the_value(self, factory):
        y = value(FACTORS, ROWS, DIM).float()
        found = StackedTransform(factory, FACTORS, DIM).preimage(y)
        torch.testing.assert_close(found, y, rtol=0, atol=1e-5)

    def test_what_the_flow_does_not_reach_is_refused(self):
        stacked = StackedTransform(lambda dim: pyro_transforms.SigmoidTransform(), FACTORS, DIM)
        with pytest.raises(ValueError, match=r"does not reach the given value.*starts at the identity"):
            stacked.preimage(torch.full((FACTORS, ROWS, DIM), 2.0))


@pytest.mark.parametrize("factory", [batch_norm, planar, radial, spline, sylvester])
def test_one_dimension_works(factory):
    check_log_det(stack(factory, dim=1), value(FACTORS, ROWS, 1))


@pytest.mark.parametrize(
    "factory",
    [
        affine_autoregressive,
        affine_coupling,
        block_autoregressive,
        householder,
        inverse_autoregressive,
        neural_autoregressive,
        polynomial,
        spline_autoregressive,
        spline_coupling,
        zuko_maf,
        zuko_naf,
        zuko_nsf,
    ],
)
def test_one_dimension_is_refused_with_the_cure(factory):
    with pytest.raises(ValueError, match=r"dim of \w+ must be at least 2, got 1: .*'planar'"):
        factory(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: affine_autoregressive(5, hidden_dims=[4]), r"hidden_dims .* none below dim = 5, got \[4\]"),
        (lambda: affine_autoregressive(5, hidden_dims=[]), "at least one size"),
        (lambda: block_autoregressive(5, hidden_factors=[2, 0]), r"none below 1, got \[2, 0\]"),
        (lambda: householder(5, num_pairs=0), "num_pairs of householder must be at least 1, got 0"),
        (lambda: polynomial(5, degree=0), "degree of polynomial must be at least 1, got 0"),
        (lambda: polynomial(5, num_squares=3), "must be even and at least 2, got 3"),
        (lambda: sylvester(3, num_reflections=4), "num_reflections must be from 1 to dim = 3, got 4"),
        (lambda: StackedTransform(planar, 0, 3), "num_factors must be at least 1, got 0"),
        (
            lambda: ConditionedTransform(planar, 2, 3, embedding_dim=0),
            "embedding_dim must be at least 1, got 0",
        ),
        (lambda: ConditionedTransform(permute, 2, 3), "has none to condition: use StackedTransform"),
        (lambda: MatrixTransform(StackedTransform(planar, 2, 3), (2, 3)), "has entries, 6, and has 3"),
        (
            lambda: MatrixTransform(StackedTransform(planar, 2, 6), (2, 3))(torch.zeros(2, 3, 2)),
            r"\(..., 2, 2, 3\), got \(2, 3, 2\)",
        ),
        (
            lambda: StackedTransform(planar, 2, 3)(torch.zeros(3, 4, 3)),
            r"\(..., 2, rows, 3\), got \(3, 4, 3\)",
        ),
        (lambda: StackedTransform(planar, 2, 3)(torch.zeros(2, 4, 4)), "third from last"),
        (lambda: StackedTransform(pyro_transforms.permute, 2, 3), "Permutation for Permute"),
        (
            lambda: StackedTransform(lambda dim: pyro_transforms.ComposeTransform([planar(dim)]), 2, 3),
            "ComposeTransformModule for ComposeTransform",
        ),
        (lambda: StackedTransform(lambda dim: affine_autoregressive(dim).inv, 2, 3), "Inverse for .inv"),
        (
            lambda: StackedTransform(lambda dim: pyro_transforms.CholeskyTransform(), 2, 3),
            "transform of vectors",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_distribution_of_the_wrong_batch_is_refused_at_once():
    with pytest.raises(ValueError, match=r"\(..., 2, rows, 3\)"):
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(4, 3), 1.0).to_event(2), [StackedTransform(planar, 2, 3)]
        )


def test_flows_from_outside_are_looped_over():
    def outside(dim):
        first, second = pyro_affine(dim), Inverse(affine_autoregressive(dim))
        return ComposeTransformModule(
            [first, Permutation(torch.randperm(dim)), pyro_transforms.elu(), second]
        )

    stacked = stack(outside)
    check_log_det(stacked, value(FACTORS, ROWS, DIM))
    x = value(FACTORS, ROWS, DIM)
    looped = stack(outside, vectorize=False)
    torch.testing.assert_close(stacked(x), looped(x), rtol=0, atol=1e-12)


def test_elementwise_flows_without_parameters_stack():
    stacked = StackedTransform(lambda dim: pyro_transforms.LeakyReLUTransform(), FACTORS, DIM)
    check_log_det(stacked, value(FACTORS, ROWS, DIM))
