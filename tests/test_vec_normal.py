"""Gaussians over all entries of a matrix against their dense form, without Monte Carlo."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro.vec_normal import VecNormal

from .exact import close, rand
from .noise import affine
from .test_matrix_normal import make_independent, tril

SHAPE, BATCHES = (2, 3), [(), (4,), (2, 2)]


def full(*batch):
    return dist.MultivariateNormal(rand(*batch, 6), scale_tril=tril(*batch, 6, seed=1))


def low(*batch, rank=2):
    loadings, diagonal = rand(*batch, 6, rank, seed=2), (0.5 * rand(*batch, 6, seed=3)).exp()
    return dist.LowRankMultivariateNormal(rand(*batch, 6), loadings, diagonal)


VECTORS = {"full": full, "low": low, "rank one": lambda *batch: low(*batch, rank=1)}


def dense(distribution):
    """The same distribution of vectors from its covariance matrix alone."""
    if isinstance(distribution, VecNormal):
        return MultivariateNormal(distribution.vector.mean, distribution.vector.covariance_matrix)
    normal = distribution.base_dist
    return MultivariateNormal(normal.loc.flatten(-2), normal.scale.square().flatten(-2).diag_embed())


def prior(*batch):
    distribution = make_independent("wide").base_dist
    loc, scale = distribution.loc[:, :3], distribution.scale[:, :3]
    return dist.Normal(loc.expand(*batch, *SHAPE), scale.expand(*batch, *SHAPE)).to_event(2)


def check_moments(distribution):
    centre, root = affine(distribution.rsample)
    covariance = dense(distribution).covariance_matrix
    close(centre, distribution.mean.flatten())
    close(root @ root.T, torch.block_diag(*covariance.reshape(-1, 6, 6)))
    close(distribution.variance.flatten(-2), covariance.diagonal(dim1=-2, dim2=-1))


def check_log_prob(distribution):
    value = rand(5, *distribution.batch_shape, *SHAPE, seed=8)
    close(distribution.log_prob(value), dense(distribution).log_prob(value.flatten(-2)), 1e-9)


def check_kl(q, p):
    kl = kl_divergence(q, p)
    assert kl.shape == q.batch_shape
    close(kl, kl_divergence(dense(q), dense(p)), 1e-9)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("name", VECTORS)
class TestAgainstTheDenseForm:
    def test_all_of_it(self, name, batch):
        distribution = VecNormal(VECTORS[name](*batch), SHAPE)
        assert (distribution.batch_shape, distribution.event_shape) == (batch, SHAPE)
        check_moments(distribution)
        check_log_prob(distribution)
        check_kl(distribution, prior(*batch))

    def test_expanded(self, name, batch):
        distribution = VecNormal(VECTORS[name](*batch), SHAPE).expand((3, *batch))
        assert distribution.rsample((7,)).shape == (7, 3, *batch, *SHAPE)
        check_moments(distribution)
        check_log_prob(distribution)
        check_kl(distribution, prior(3, *batch))


@pytest.mark.parametrize("name", VECTORS)
class TestFaults:
    def test_columns_one_after_the_other(self, name, monkeypatch):
        monkeypatch.setattr(VecNormal, "_as_matrix", lambda self, x: x.unflatten(-1, (3, 2)).mT)
        distribution = VecNormal(VECTORS[name](), SHAPE)
        for check in (check_moments, lambda q: check_kl(q, prior())):
            with pytest.raises(AssertionError):
                check(distribution)

    def test_determinant_of_the_diagonal_alone(self, name, monkeypatch):
        vector = VECTORS[name]()
        monkeypatch.setattr(
            type(vector), "entropy", lambda self: dist.Normal(0.0, self.variance.sqrt()).entropy().sum(-1)
        )
        with pytest.raises(AssertionError):
            check_kl(VecNormal(vector, SHAPE), prior())


@pytest.mark.parametrize("name", VECTORS)
def test_gradients_are_right(name):
    vector = VECTORS[name]()
    names = ("loc", "scale_tril") if name == "full" else ("loc", "cov_factor", "cov_diag")
    values = [getattr(vector, part).clone().requires_grad_() for part in names]

    def results(*parts):
        parts = dict(zip(names, parts, strict=True))
        if name == "full":
            parts["scale_tril"] = parts["scale_tril"].tril()
        q = VecNormal(type(vector)(**parts, validate_args=False), SHAPE)
        return q.log_prob(rand(*SHAPE, seed=8)), kl_divergence(q, prior())

    assert torch.autograd.gradcheck(results, values)


class TestErrors:
    @pytest.mark.parametrize("shape", [(2, 2), (6,)])
    def test_shape(self, shape):
        with pytest.raises(ValueError, match=r"shape is .* but vector has 6 entries"):
            VecNormal(full(), shape)

    def test_no_closed_form(self):
        for p in (dist.Laplace(torch.zeros(SHAPE).double(), 1.0).to_event(2), make_independent("wide")):
            with pytest.raises(NotImplementedError):
                kl_divergence(VecNormal(full(), SHAPE), p)
