"""Inducing maps against their dense definition; orthonormal factors against the best approximation."""

import pytest
import torch

from bayeslora_pyro.linalg import InducingMap, orthonormal_factor

from .exact import rand

SHAPES = {
    "fewer than the side": ((), 3, 5),
    "as many": ((), 4, 4),
    "more than the side": ((), 6, 2),
    "one": ((), 1, 1),
    "a batch": ((3,), 2, 5),
    "a batch of batches": ((2, 3), 5, 3),
}


def make(name, nugget=0.5):
    batch, rank, size = SHAPES[name]
    return InducingMap(rand(*batch, rank, size), nugget * rand(*batch, rank, seed=1).exp())


def check_orthonormal(matrix, tolerance=1e-12):
    identity = torch.eye(matrix.shape[-2], dtype=matrix.dtype).expand_as(matrix @ matrix.mT)
    torch.testing.assert_close(matrix @ matrix.mT, identity, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SHAPES)
class TestInducingMap:
    def test_is_the_whitened_joint(self, name):
        side = make(name)
        z, d = side.locations, side.nuggets.diag_embed()
        cholesky = torch.linalg.cholesky(z @ z.mT + d @ d)
        torch.testing.assert_close(side.signal, torch.linalg.solve(cholesky, z), rtol=0, atol=1e-12)
        torch.testing.assert_close(side.noise, torch.linalg.solve(cholesky, d), rtol=0, atol=1e-12)
        assert (side.batch_shape, side.rank, side.size) == SHAPES[name]

    @pytest.mark.parametrize(("nugget", "tolerance"), [(1e-3, 1e-8), (0.5, 1e-12), (10.0, 1e-12)])
    def test_rows_are_orthonormal(self, name, nugget, tolerance):
        check_orthonormal(make(name, nugget).matrix, tolerance)

    def test_float32_is_good_to_its_last_digits(self, name):
        exact = make(name, 1e-3)
        single = InducingMap(exact.locations.float(), exact.nuggets.float())
        same = InducingMap(single.locations.double(), single.nuggets.double())
        assert single.matrix.dtype == torch.float32
        torch.testing.assert_close(single.matrix.double(), same.matrix, rtol=1e-7, atol=1e-9)


def test_jitter_would_be_caught():
    side = make("more than the side", 1e-3)
    z, d = side.locations, side.nuggets.diag_embed()
    joint = torch.cat([z, d], -1)
    jitter = 1e-5 * torch.eye(side.rank, dtype=torch.float64)
    with pytest.raises(AssertionError):
        check_orthonormal(torch.linalg.solve(torch.linalg.cholesky(joint @ joint.mT + jitter), joint), 1e-8)


def test_batches_broadcast():
    z, d = rand(2, 3), rand(4, 2, seed=1).exp()
    together = InducingMap(z, d)
    assert together.batch_shape == (4,)
    for index in range(4):
        torch.testing.assert_close(together.matrix[index], InducingMap(z, d[index]).matrix)


DEGENERATE = {
    "no location": torch.zeros(3, 4),
    "one location thrice": torch.ones(3, 1) * torch.arange(4.0),
    "orthonormal and padded": torch.eye(4)[:3] * torch.tensor([1.0, 1.0, 0.0])[:, None],
    "huge": 1e4 * torch.eye(4)[:3],
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_gradients_stay_finite_at_degenerate_locations(name):
    z = DEGENERATE[name].double().requires_grad_()
    d = torch.full((3,), 1e-3, dtype=torch.float64, requires_grad=True)
    side = InducingMap(z, d)
    check_orthonormal(side.matrix, 1e-8)
    gradients = torch.autograd.grad((side.matrix * rand(3, 7)).sum(), [z, d])
    assert all(gradient.isfinite().all() for gradient in gradients)


class TestSameAs:
    z, d = rand(2, 3), rand(2, seed=1).exp()

    def test_one_map(self):
        side = InducingMap(self.z, self.d)
        assert side.same_as(side)
        assert side.same_as(InducingMap(self.z, self.d))

    def test_nuggets_may_be_computed_anew(self):
        assert InducingMap(self.z, self.d).same_as(InducingMap(self.z, self.d.clone()))

    @pytest.mark.parametrize("other", [(z.clone() + 1e-9, d), (z, d + 1e-9), (z[:1], d[:1])])
    def test_other_maps(self, other):
        assert not InducingMap(self.z, self.d).same_as(InducingMap(*other))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (3, 2, 7), (2, 3, 7, 2), (1, 8)])
class TestOrthonormalFactor:
    def test_full_rank_is_exact(self, shape):
        matrix = rand(*shape)
        core, rows = orthonormal_factor(matrix, min(shape[-2:]))
        torch.testing.assert_close(core @ rows, matrix, rtol=0, atol=1e-12)
        check_orthonormal(rows)

    def test_lower_rank_is_the_best_approximation(self, shape):
        matrix = rand(*shape)
        for rank in range(1, min(shape[-2:])):
            core, rows = orthonormal_factor(matrix, rank)
            assert core.shape == (*shape[:-1], rank)
            left_out = torch.linalg.svdvals(matrix)[..., rank:].square().sum(-1)
            error = (core @ rows - matrix).square().sum((-2, -1))
            torch.testing.assert_close(error, left_out, rtol=0, atol=1e-12)
            check_orthonormal(rows)

    def test_zero_has_orthonormal_rows_too(self, shape):
        core, rows = orthonormal_factor(torch.zeros(shape, dtype=torch.float64), min(shape[-2:]))
        assert not core.any()
        check_orthonormal(rows)
