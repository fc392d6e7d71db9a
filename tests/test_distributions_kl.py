"""The divergence between two conditionals of one inducing model, and where it does not hold."""

import pytest
import torch
from torch.distributions import kl_divergence

from bayeslora_pyro.distributions import InducedNormal

from .dense import SHAPES, dense, make, symbols
from .exact import close, rand


def pair(name, q_scale=None, **changes):
    """Conditionals of guide and model given one inducing matrix: they differ in their noise."""
    p = make(name, **changes)
    noise_scale = rand(*p.batch_shape, seed=9).exp() if q_scale is None else q_scale
    return InducedNormal(p.latent, p.rows, p.cols, noise_scale, p.scale), p


def check_kl(kl, q, p, name):
    """Compares with the divergence of two dense normals."""
    q_dense, p_dense = (
        dense(name, latent=d.latent, noise_scale=d.noise_scale.expand(d.batch_shape), scale=d.scale)
        for d in (q, p)
    )
    truth = [kl_divergence(*both) for both in zip(q_dense, p_dense, strict=True)]
    torch.testing.assert_close(kl, torch.stack(truth).reshape(kl.shape), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
class TestKL:
    def test_is_the_dense_one_whatever_the_inducing_matrix(self, name):
        kls = []
        for seed in range(3):
            q, p = pair(name, latent=rand(*symbols(name)["latent"].shape, seed=seed))
            kls.append(kl_divergence(q, p))
            check_kl(kls[-1], q, p, name)
        assert kls[0].shape == p.batch_shape
        assert torch.equal(kls[0], kls[1])

    def test_the_other_way_round_would_be_caught(self, name):
        q, p = pair(name)
        with pytest.raises(AssertionError):
            check_kl(kl_divergence(p, q), q, p, name)

    def test_a_forgotten_scale_would_be_caught(self, name):
        q, p = pair(name)
        other = InducedNormal(p.latent, p.rows, p.cols, p.noise_scale, 2 * p.scale)
        with pytest.raises(AssertionError):
            check_kl(kl_divergence(q, p), q, other, name)

    def test_is_flat_and_zero_at_the_noise_of_the_prior(self, name):
        noise_scale = torch.ones(SHAPES[name][0], dtype=torch.float64, requires_grad=True)
        q, p = pair(name, noise_scale, noise_scale=torch.ones_like(noise_scale).detach())
        kl = kl_divergence(q, p)
        (gradient,) = torch.autograd.grad(kl.sum(), noise_scale)
        assert not kl.any()
        assert not gradient.any()

    def test_gradient(self, name):
        noise_scale = rand(*SHAPES[name][0]).sigmoid().requires_grad_()
        q, p = pair(name, noise_scale, noise_scale=torch.ones_like(noise_scale).detach())
        (gradient,) = torch.autograd.grad(kl_divergence(q, p).sum(), noise_scale)
        close(gradient, p.event_shape.numel() * (noise_scale - 1 / noise_scale).detach())

    @pytest.mark.parametrize("part", ["latent", "z_row", "z_col", "d_row", "d_col", "scale"])
    def test_is_refused_where_more_than_the_noise_differs(self, name, part):
        q, p = pair(name)
        values = {"latent": p.latent, "scale": p.scale}
        values |= {
            f"{key}_row": value for key, value in zip("zd", (p.rows.locations, p.rows.nuggets), strict=True)
        }
        values |= {
            f"{key}_col": value for key, value in zip("zd", (p.cols.locations, p.cols.nuggets), strict=True)
        }
        kl_divergence(q, InducedNormal.from_locations(**values))
        with pytest.raises(NotImplementedError):
            kl_divergence(q, InducedNormal.from_locations(**values | {part: values[part] * 1.01}))


def test_kl_per_weight_at_a_hundredth():
    d_o, d_i = SHAPES["wide"][-2:]
    distribution, prior = pair("wide", torch.tensor(0.01).double(), noise_scale=torch.tensor(1.0).double())
    assert kl_divergence(distribution, prior).item() / (d_o * d_i) == pytest.approx(4.10522, abs=1e-5)
