"""Whitening changes nothing: the same divergence and the same draws as in the inducing matrix `U = L_r V L_c^T`."""

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro.elbo import PartsELBO

from .dense import SHAPES, dense_side, make, one_by_one
from .exact import close, rand
from .noise import drawn_from, num_draws
from .test_elbo import make as make_pair


def grams(z_row, d_row, z_col, d_col):
    """The covariances of the rows and of the columns of U."""
    return z_row @ z_row.mT + d_row.square().diag_embed(), z_col @ z_col.mT + d_col.square().diag_embed()


def root(covariance):
    return torch.linalg.cholesky(covariance).contiguous()


LIFTS = {
    "right": lambda row, col: torch.kron(root(row), root(col)),
    "sides swapped": lambda row, col: torch.kron(root(col), root(row)),
    "transposed": lambda row, col: torch.kron(root(row), root(col)).T,
    "columns forgotten": lambda row, col: torch.kron(root(row), torch.eye(len(col)).double()),
    "covariance for its root": lambda row, col: torch.kron(row, col),
}
"""From the covariances to the matrix that takes vec V to vec U, and what it is not."""


def unwhitened_kl(mean, covariance, row, col, lift):
    """The divergence of q(U) from the matrix normal prior, where q(V) is a Gaussian."""
    q = MultivariateNormal(lift @ mean, lift @ covariance @ lift.T)
    return kl_divergence(q, MultivariateNormal(torch.zeros(len(lift)).double(), torch.kron(row, col)))


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("name", ["wide", "tall", "more of both"])
def test_divergence_of_any_gaussian(name, lift):
    (single,) = one_by_one(name)
    row, col = grams(*(single[key] for key in ("z_row", "d_row", "z_col", "d_col")))
    size = len(row) * len(col)
    mean, spread = rand(size, seed=8), rand(size, size, seed=9) + torch.eye(size)
    standard = MultivariateNormal(torch.zeros(size).double(), torch.eye(size).double())
    whitened = kl_divergence(MultivariateNormal(mean, spread @ spread.T), standard)
    found = unwhitened_kl(mean, spread @ spread.T, row, col, LIFTS[lift](row, col))
    assert torch.isclose(found, whitened, rtol=1e-9) == (lift == "right")


@pytest.mark.parametrize("lift", LIFTS)
def test_divergence_in_the_elbo(lift):
    with pyro.settings.context(module_local_params=True):
        model, guide = make_pair("inducing", "mean_field")
        parts = PartsELBO().parts(model.sample_weights, guide)
    for stack in model.stacks:
        q, total = guide.get_base_dist(stack).base_dist, 0.0
        conditional = model.prior_of(stack).conditional(stack, q.loc)
        sides = conditional.rows, conditional.cols
        rows, cols = grams(*(value for side in sides for value in (side.locations, side.nuggets)))
        for index in range(len(stack)):
            row, col = rows[index], cols[index]
            covariance = q.scale[index].flatten().square().diag()
            total += unwhitened_kl(q.loc[index].flatten(), covariance, row, col, LIFTS[lift](row, col))
        assert torch.isclose(parts.kl[f"{stack.name}.V"], total.detach(), rtol=1e-9) == (lift == "right")


def draws_from_inducing(name, noise, whiten=True):
    """Draws as the paper writes them, `scale T_r U T_c^T` and the noise of a draw around zero."""
    means = []
    for single in one_by_one(name):
        (l_row, t_row, _), (l_col, t_col, _) = (
            dense_side(single[f"z_{side}"], single[f"d_{side}"]) for side in ("row", "col")
        )
        latent = single["latent"]
        inducing = l_row @ latent @ l_col.T if whiten else latent
        means.append(single["scale"] * t_row @ inducing @ t_col.T)
    with drawn_from(noise):
        around_zero = make(name, latent=torch.zeros_like(make(name).latent)).rsample()
    return torch.stack(means).reshape(around_zero.shape) + around_zero


@pytest.mark.parametrize("name", SHAPES)
def test_draws_are_those_from_the_inducing_matrix(name):
    noise = rand(num_draws(make(name).rsample), seed=10)
    with drawn_from(noise):
        ours = make(name).rsample()
    close(ours, draws_from_inducing(name, noise))
    for wrong in (draws_from_inducing(name, noise, whiten=False), draws_from_inducing(name, noise.flip(0))):
        with pytest.raises(AssertionError):
            close(ours, wrong)
