"""The Gaussian with a Kronecker precision against the dense one, in float64, whole and of low rank."""

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from bayeslora_pyro.kronecker_normal import KroneckerNormal

from .exact import rand

# batch, m, n, p, q
SHAPES = {
    "whole": ((), 3, 4, 3, 4),
    "rows of low rank": ((), 4, 3, 2, 3),
    "both of low rank": ((2,), 4, 5, 2, 3),
    "no curvature": ((2,), 3, 2, 0, 0),
    "one": ((), 1, 1, 1, 1),
    "a batch of batches": ((2, 3), 2, 3, 2, 1),
}


def make(name: str) -> KroneckerNormal:
    batch, m, n, p, q = SHAPES[name]
    row_vectors = torch.linalg.qr(rand(*batch, m, m, seed=1))[0][..., :p]
    col_vectors = torch.linalg.qr(rand(*batch, n, n, seed=2))[0][..., :q]
    return KroneckerNormal(
        rand(*batch, m, n, seed=3),
        rand(*batch, seed=4).exp(),
        row_vectors,
        rand(*batch, p, seed=5).exp(),
        col_vectors,
        rand(*batch, q, seed=6).exp(),
    )


def dense(q: KroneckerNormal) -> MultivariateNormal:
    rows = q.row_vectors @ q.row_values.diag_embed() @ q.row_vectors.mT
    cols = q.col_vectors @ q.col_values.diag_embed() @ q.col_vectors.mT
    m, n = q.event_shape
    product = torch.einsum("...ab,...cd->...acbd", rows, cols).reshape(*q.batch_shape, m * n, m * n)
    identity = torch.eye(m * n, dtype=torch.float64)
    return MultivariateNormal(
        q.loc.flatten(-2), precision_matrix=product + q.precision[..., None, None] * identity
    )


@pytest.mark.parametrize("name", SHAPES)
def test_density_and_moments_are_the_dense_ones(name: str) -> None:
    q = make(name)
    value = rand(2, *q.batch_shape, *q.event_shape, seed=7)
    torch.testing.assert_close(q.log_prob(value), dense(q).log_prob(value.flatten(-2)))
    torch.testing.assert_close(q.variance.flatten(-2), dense(q).variance)
    torch.testing.assert_close(q.mean, q.loc)
    torch.testing.assert_close(q.log_det_precision, dense(q).precision_matrix.logdet())


@pytest.mark.parametrize("name", SHAPES)
def test_a_draw_is_a_root_of_the_covariance_times_white_noise(name: str) -> None:
    q = make(name)
    size = q.event_shape.numel()
    whites = torch.eye(size, dtype=torch.float64).reshape(size, *[1] * len(q.batch_shape), *q.event_shape)
    whites = whites.expand(size, *q.batch_shape, *q.event_shape)
    draws = _with_noise(q, whites) - q.loc
    root = draws.flatten(-2).movedim(0, -1)
    torch.testing.assert_close(root @ root.mT, dense(q).covariance_matrix)


def _with_noise(q: KroneckerNormal, white: torch.Tensor) -> torch.Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bayeslora_pyro.kronecker_normal._standard_normal", lambda shape, dtype, device: white)
        return q.rsample((len(white),))


@pytest.mark.parametrize("name", SHAPES)
def test_the_divergence_is_the_dense_one(name: str) -> None:
    q = make(name)
    loc, scale = rand(*q.event_shape, seed=8), rand(*q.event_shape, seed=9).exp()
    flat = MultivariateNormal(loc.flatten(), scale.flatten().square().diag_embed())
    found = kl_divergence(q, Independent(Normal(loc, scale), 2))
    torch.testing.assert_close(found, kl_divergence(dense(q), flat))
    alike = Independent(Normal(loc.expand(*q.batch_shape, *q.event_shape), scale), 2)
    torch.testing.assert_close(kl_divergence(q, alike), found)


def test_eigenvalues_in_another_order_are_noticed() -> None:
    q = make("whole")
    value = rand(*q.event_shape, seed=7)
    other = KroneckerNormal(
        q.loc, q.precision, q.row_vectors, q.row_values.flip(-1), q.col_vectors, q.col_values
    )
    assert not torch.allclose(other.log_prob(value), dense(q).log_prob(value.flatten()))


def test_it_expands_and_its_gradients_are_right() -> None:
    q = make("both of low rank")
    assert q.expand((3, 2)).batch_shape == (3, 2)
    assert q.expand((3, 2)).rsample((5,)).shape == (5, 3, 2, 4, 5)
    precision = q.precision.clone().requires_grad_()

    def log_prob(precision: torch.Tensor) -> torch.Tensor:
        new = KroneckerNormal(q.loc, precision, q.row_vectors, q.row_values, q.col_vectors, q.col_values)
        prior = Independent(Normal(torch.zeros_like(q.loc), 1.0), 2)
        return new.log_prob(rand(2, 4, 5, seed=7)) + kl_divergence(new, prior)

    assert torch.autograd.gradcheck(log_prob, precision)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q = make("whole")
    with pytest.raises(ValueError, match=r"row_vectors has shape \(3, 2\).*should be \(3, 3\)"):
        KroneckerNormal(q.loc, q.precision, q.row_vectors[:, :2], q.row_values, q.col_vectors, q.col_values)
    with pytest.raises(ValueError, match="precision"):
        KroneckerNormal(
            q.loc, -q.precision, q.row_vectors, q.row_values, q.col_vectors, q.col_values, validate_args=True
        )
