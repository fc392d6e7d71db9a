"""The matrix normal distribution against its dense form, without Monte Carlo."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro import matrix_normal as module
from bayeslora_pyro.matrix_normal import MatrixNormal

from .exact import close, rand
from .noise import affine

# Batch shape, rows, columns.
SHAPES = {
    "wide": ((), 2, 4),
    "tall": ((), 4, 2),
    "square": ((), 3, 3),
    "one": ((), 1, 1),
    "a row": ((), 1, 3),
    "a batch": ((3,), 2, 3),
    "a batch of batches": ((2, 2), 3, 2),
}


def tril(*shape, seed):
    """A Cholesky factor."""
    raw = 0.5 * rand(*shape, shape[-1], seed=seed)
    return raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()


def make(name, seed=0):
    batch, rows, cols = SHAPES[name]
    factors = tril(*batch, rows, seed=seed + 1), tril(*batch, cols, seed=seed + 2)
    return MatrixNormal(rand(*batch, rows, cols, seed=seed), *factors)


def make_independent(name, seed=0):
    batch, rows, cols = SHAPES[name]
    scale = (0.5 * rand(*batch, rows, cols, seed=seed + 1)).exp()
    return dist.Normal(rand(*batch, rows, cols, seed=seed), scale).to_event(2)


def kron(left, right):
    rows = left.shape[-1] * right.shape[-1]
    return torch.einsum("...ij,...kl->...ikjl", left, right).reshape(*left.shape[:-2], rows, rows)


def dense(distribution):
    """The same distribution as a dense multivariate normal, batch and all."""
    if isinstance(distribution, MatrixNormal):
        row, col = (
            (factor @ factor.mT).expand(*distribution.batch_shape, *factor.shape[-2:])
            for factor in (distribution.row_tril, distribution.col_tril)
        )
        covariance = kron(row, col)
    else:
        covariance = distribution.base_dist.scale.square().flatten(-2).diag_embed()
    return MultivariateNormal(distribution.mean.flatten(-2), covariance)


def blocks(distribution):
    """The covariance of all that is drawn at once."""
    covariance = dense(distribution).covariance_matrix
    return torch.block_diag(*covariance.reshape(-1, *covariance.shape[-2:]))


def check_moments(distribution):
    centre, root = affine(distribution.rsample)
    close(centre, distribution.mean.flatten())
    close(root @ root.T, blocks(distribution))


def check_log_prob(distribution):
    value = rand(4, *distribution.batch_shape, *distribution.event_shape, seed=8)
    log_prob = distribution.log_prob(value)
    assert log_prob.shape == (4, *distribution.batch_shape)
    close(log_prob, dense(distribution).log_prob(value.flatten(-2)), 1e-9)


def check_kl(q, p, kl=None):
    kl = kl_divergence(q, p) if kl is None else kl
    close(kl, kl_divergence(dense(q), dense(p)), 1e-9)


@pytest.mark.parametrize("name", SHAPES)
class TestAgainstTheDenseForm:
    def test_draws(self, name):
        check_moments(make(name))

    def test_mean_and_variance(self, name):
        distribution = make(name)
        assert torch.equal(distribution.mean, distribution.loc)
        close(distribution.variance.flatten(-2), dense(distribution).variance)

    def test_log_prob(self, name):
        check_log_prob(make(name))

    def test_draws_of_a_sample_shape_are_independent(self, name):
        distribution = make(name)
        _, root = affine(lambda: distribution.rsample((2,)))
        close(root @ root.T, torch.block_diag(blocks(distribution), blocks(distribution)))
        assert distribution.rsample((2, 3)).shape == (
            2,
            3,
            *distribution.batch_shape,
            *distribution.event_shape,
        )

    def test_divergences(self, name):
        check_kl(make(name), make(name, seed=10))
        check_kl(make(name), make_independent(name))
        check_kl(make_independent(name), make(name))
        close(kl_divergence(make(name), make(name)), torch.zeros(SHAPES[name][0]).double(), 1e-9)

    def test_expanded(self, name):
        once = make(name)
        expanded = once.expand((4, *once.batch_shape))
        assert (expanded.batch_shape, expanded.event_shape) == ((4, *once.batch_shape), once.event_shape)
        check_moments(expanded)
        check_log_prob(expanded)
        check_kl(expanded, make(name, seed=10).expand(expanded.batch_shape))
        check_kl(expanded, make_independent(name).expand(expanded.batch_shape))


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "one"])
class TestFaults:
    """Variants that are wrong in one thing, each of which the checks above must refuse."""

    def test_a_factor_used_the_wrong_way_round(self, name, monkeypatch):
        def rsample(self, sample_shape=()):
            white = module._standard_normal(self.loc.shape, self.loc.dtype, self.loc.device)
            return self.loc + self.row_tril @ white @ self.col_tril

        monkeypatch.setattr(MatrixNormal, "rsample", rsample)
        with pytest.raises(AssertionError):
            check_moments(make(name))

    def test_determinants_without_their_powers(self, name, monkeypatch):
        def half_log_det(self):
            return sum(f.diagonal(dim1=-2, dim2=-1).log().sum(-1) for f in (self.row_tril, self.col_tril))

        monkeypatch.setattr(MatrixNormal, "half_log_det", property(half_log_det))
        for check in (
            lambda: check_log_prob(make(name)),
            lambda: check_kl(make(name), make(name, seed=10)),
            lambda: check_kl(make(name), make_independent(name)),
            lambda: check_kl(make_independent(name), make(name)),
        ):
            with pytest.raises(AssertionError):
                check()

    def test_divergences_the_other_way_round(self, name):
        for q, p in (
            (make(name), make(name, seed=10)),
            (make(name), make_independent(name)),
            (make_independent(name), make(name)),
        ):
            with pytest.raises(AssertionError):
                check_kl(q, p, kl_divergence(p, q))

    def test_whitening_without_the_columns(self, name, monkeypatch):
        monkeypatch.setattr(
            MatrixNormal,
            "whiten",
            lambda self, x: torch.linalg.solve_triangular(self.row_tril, x, upper=False),
        )
        with pytest.raises(AssertionError):
            check_log_prob(make(name))


@pytest.mark.parametrize("name", ["wide", "tall", "one"])
def test_gradients_are_right(name):
    values = [value.requires_grad_() for value in (make(name).loc, make(name).row_tril, make(name).col_tril)]
    value = rand(*make(name).event_shape, seed=8)

    def results(loc, row_tril, col_tril):
        q, p = MatrixNormal(loc, row_tril.tril(), col_tril.tril(), validate_args=False), make(name, seed=10)
        independent = make_independent(name)
        return q.log_prob(value), kl_divergence(q, p), kl_divergence(p, q), kl_divergence(q, independent)

    assert torch.autograd.gradcheck(results, values, atol=1e-5)


def test_factors_broadcast_over_a_batch():
    distribution = MatrixNormal(rand(3, 2, 4), tril(2, seed=1), tril(3, 4, seed=2))
    assert distribution.batch_shape == (3,)
    check_moments(distribution)
    check_log_prob(distribution)


class TestErrors:
    @pytest.mark.parametrize(("rows", "cols", "name"), [(3, 4, "row_tril"), (2, 3, "col_tril")])
    def test_factor_of_another_size(self, rows, cols, name):
        with pytest.raises(ValueError, match=rf"{name} has shape .* should be \((2, 2|4, 4)\)"):
            MatrixNormal(rand(2, 4), tril(rows, seed=1), tril(cols, seed=2))

    def test_factor_that_is_not_triangular(self):
        with pytest.raises(ValueError, match="row_tril"):
            MatrixNormal(rand(2, 4), torch.ones(2, 2).double(), tril(4, seed=2))

    def test_value_of_another_size(self):
        with pytest.raises(ValueError, match="must match event_shape"):
            make("wide").log_prob(rand(5, 3))

    def test_divergence_between_sizes(self):
        with pytest.raises(ValueError, match=r"event shape \(2, 4\) and p \(4, 2\)"):
            kl_divergence(make("wide"), make("tall"))

    def test_entries_that_are_not_normal(self):
        laplace = dist.Laplace(rand(2, 4), 1.0).to_event(2)
        for pair in ((make("wide"), laplace), (laplace, make("wide"))):
            with pytest.raises(NotImplementedError):
                kl_divergence(*pair)
