"""Flows made of flows: in a row, again and again, by their names, inverted, permuted."""

import pytest
import torch
from torch import nn

from bayeslora_pyro.transforms import (
    TRANSFORMS,
    Inverse,
    affine_autoregressive,
    affine_coupling,
    batch_norm,
    composed,
    find_transform,
    householder,
    inverse_autoregressive,
    iterated,
    matrix_exponential,
    permute,
    planar,
    spline_coupling,
)

from .exact import perturb
from .flows import DIM, FACTORS, ROWS, check_log_det, stack, value


def test_composed_applies_the_first_first():
    flow = perturb(composed(batch_norm, matrix_exponential, permute)(DIM).double())
    first, second, third = flow.parts
    x = value(7, DIM)
    torch.testing.assert_close(flow(x), third(second(first(x))), rtol=0, atol=0)
    assert (flow(x) - first(second(third(x)))).abs().max() > 1e-3  # the order shows


def test_composed_log_det_is_the_sum():
    flow = perturb(composed(batch_norm, matrix_exponential)(DIM).double())
    first, second = flow.parts
    truth = first.log_scale.sum() + second.weights.diagonal().sum()
    x = value(7, DIM)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, flow(x)), truth.expand(7), rtol=0, atol=1e-12)


def test_names_compose():
    flow = find_transform("permute+affine_autoregressive+batch_norm")(DIM)
    assert [type(part).__name__ for part in flow.parts] == [
        "Permutation",
        "AffineAutoregressive",
        "BatchNorm",
    ]
    assert find_transform("planar") is TRANSFORMS["planar"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: composed(), "composed needs at least one factory, got none"),
        (lambda: iterated(0, planar), "depth must be at least 1, got 0"),
        (
            lambda: find_transform("glow"),
            r"transform='glow' is not known\. Choose one of affine_autoregressive",
        ),
        (
            lambda: find_transform("permute+glow"),
            r"'permute\+glow' is not known: 'glow' is no flow\. Choose one of",
        ),
        (lambda: find_transform("planar+"), "'' is no flow"),
    ],
)
def test_bad_compositions_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("factory", [affine_coupling, spline_coupling, composed(batch_norm, affine_coupling)])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_iterated_couplings_reach_every_coordinate(factory, dim):
    for seed in range(5):
        stacked = stack(iterated(2, factory), factors=1, dim=dim, seed=seed)
        x = value(1, 1, dim)
        slopes = torch.autograd.functional.jacobian(stacked, x).reshape(dim, dim).diagonal()
        assert (slopes != 1).all()


@pytest.mark.parametrize(
    "inner", [affine_autoregressive, composed(affine_autoregressive, permute, spline_coupling)]
)
def test_the_inverse_of_a_flow_is_one(inner):
    stacked, forward = stack(lambda dim: Inverse(inner(dim))), stack(inner)
    x = value(FACTORS, ROWS, DIM)
    torch.testing.assert_close(stacked(forward(x)), x, rtol=0, atol=1e-9)
    check_log_det(stacked, x)


def test_inverse_autoregressive_is_the_inverse_of_the_forward_one():
    forward, backward = stack(affine_autoregressive), stack(inverse_autoregressive)
    x = value(FACTORS, ROWS, DIM)
    torch.testing.assert_close(backward(forward(x)), x, rtol=0, atol=1e-9)


def test_householder_reaches_any_rotation():
    generator = torch.Generator().manual_seed(0)
    target = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    target[0] *= torch.linalg.det(target).sign()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = householder(4)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(flow(torch.eye(4)), target)
        loss.backward()
        optimizer.step()
    assert loss < 1e-3


def test_householder_turns_and_keeps_lengths():
    flow = perturb(householder(DIM).double())
    rotation = flow(torch.eye(DIM, dtype=torch.float64))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(DIM).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(rotation).item(), 1.0, rtol=0, atol=1e-12)


def test_matrix_exponential_is_exact_for_large_matrices():
    flow = matrix_exponential(2).double()
    with torch.no_grad():  # a turn by three radians, and a growth by exp(4)
        flow.weights.copy_(torch.tensor([[4.0, -3.0], [3.0, 4.0]]))
    cos, sin = torch.tensor(3.0).double().cos(), torch.tensor(3.0).double().sin()
    truth = torch.tensor(4.0).double().exp() * torch.stack([cos, sin])
    torch.testing.assert_close(flow(torch.tensor([1.0, 0.0]).double()), truth, rtol=1e-12, atol=0)
