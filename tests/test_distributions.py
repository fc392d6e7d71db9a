"""The conditional of the inducing model against its dense form, without Monte Carlo."""

import pytest
import torch

from bayeslora_pyro import distributions
from bayeslora_pyro.distributions import InducedNormal

from .dense import SHAPES, dense, dense_side, make, symbols
from .exact import close, rand
from .noise import affine


def check_moments(distribution, name):
    """Mean and covariance of draws, factor by factor, and nothing in common between factors."""
    centre, root = affine(distribution.rsample)
    close(centre, torch.cat([single.mean for single in dense(name)]))
    close(root @ root.T, torch.block_diag(*[single.covariance_matrix for single in dense(name)]))


@pytest.mark.parametrize("name", SHAPES)
class TestSampler:
    def test_draws_have_the_dense_moments(self, name):
        check_moments(make(name), name)

    def test_inducing_variables_of_another_draw_would_be_caught(self, name, monkeypatch):
        original = InducedNormal._white_noise

        def unrelated(self, shape):
            white, inducing = original(self, shape)
            return white, distributions._standard_normal(inducing.shape, inducing.dtype, inducing.device)

        monkeypatch.setattr(InducedNormal, "_white_noise", unrelated)
        with pytest.raises(AssertionError):
            check_moments(make(name), name)

    def test_mean_and_variance(self, name):
        distribution = make(name)
        shape = distribution.batch_shape + distribution.event_shape
        close(distribution.mean, torch.stack([single.mean for single in dense(name)]).reshape(shape))
        close(distribution.variance, torch.stack([single.variance for single in dense(name)]).reshape(shape))

    def test_marginal_does_not_depend_on_locations_or_nuggets(self, name):
        # The tower rule: with V ~ N(0, I), W ~ N(0, scale^2 I).
        latent, scale = symbols(name)["latent"], symbols(name)["scale"]

        def draw():
            white = distributions._standard_normal(latent.shape, latent.dtype, latent.device)
            return make(name, latent=white, noise_scale=1.0).rsample()

        centre, root = affine(draw)
        variance = scale[..., None, None].square().expand(*make(name).batch_shape, *make(name).event_shape)
        close(centre, torch.zeros_like(centre))
        close(root @ root.T, variance.flatten().diag())

    def test_draws_of_a_sample_shape_are_independent(self, name):
        _, root = affine(lambda: make(name).rsample((2,)))
        once = torch.block_diag(*[single.covariance_matrix for single in dense(name)])
        close(root @ root.T, torch.block_diag(once, once))
        assert make(name).rsample((2, 3)).shape == (2, 3, *make(name).batch_shape, *make(name).event_shape)


class TestJoint:
    """The conditional is the Schur complement of (vec W | vec U) in the joint of the augmented [[W, .], [., U]]."""

    values = symbols("wide", nugget=0.7) | {"noise_scale": torch.tensor(1.0).double()}

    def joint(self):
        """The covariances of the rows and of the columns of the augmented matrix."""
        for z, d in (("z_row", "d_row"), ("z_col", "d_col")):
            z, d = self.values[z], self.values[d]
            identity = torch.eye(z.shape[-1], dtype=torch.float64)
            yield torch.cat([torch.cat([identity, z.T], 1), torch.cat([z, z @ z.T + (d**2).diag()], 1)])

    def inducing(self):
        """The inducing matrix `U = L_r V L_c^T`."""
        (_, _, _, d_o, d_i), (rows, cols) = SHAPES["wide"], self.joint()
        l_row, l_col = torch.linalg.cholesky(rows[d_o:, d_o:]), torch.linalg.cholesky(cols[d_i:, d_i:])
        return l_row @ self.values["latent"] @ l_col.T

    def check(self, distribution):
        joint, (_, p, q, d_o, d_i) = torch.kron(*self.joint()), SHAPES["wide"]
        index = torch.arange(len(joint)).reshape(d_o + p, d_i + q)
        w, u = index[:d_o, :d_i].flatten(), index[d_o:, d_i:].flatten()
        operator = torch.linalg.solve(joint[u][:, u], joint[u][:, w]).T
        covariance = joint[w][:, w] - operator @ joint[u][:, w]
        centre, root = affine(distribution.rsample)
        close(centre, self.values["scale"] * operator @ self.inducing().flatten())
        close(root @ root.T, self.values["scale"] ** 2 * covariance)

    def test_conditional_comes_from_it(self):
        self.check(InducedNormal.from_locations(**self.values))

    @pytest.mark.parametrize(
        "fault",
        [
            lambda values: {"d_row": 1.01 * values["d_row"]},
            lambda values: {"d_col": 0 * values["d_col"] + 1e-3},
            lambda values: {"z_col": values["z_col"].flip(0)},
            lambda values: {"noise_scale": 1.01 * values["noise_scale"]},
            lambda values: {"latent": TestJoint().inducing()},
        ],
        ids=["nugget", "no nugget", "order of the rows", "noise", "not whitened"],
    )
    def test_another_conditional_would_be_caught(self, fault):
        with pytest.raises(AssertionError):
            self.check(InducedNormal.from_locations(**self.values | fault(self.values)))

    def test_mean_alone_would_be_caught(self, monkeypatch):
        distribution = InducedNormal.from_locations(**self.values)
        original = InducedNormal._white_noise

        def no_correction(self, shape):
            white, inducing = original(self, shape)
            return white, torch.zeros_like(inducing)

        monkeypatch.setattr(InducedNormal, "_white_noise", no_correction)
        with pytest.raises(AssertionError):
            self.check(distribution)


class TestMatheronRuleOfThePaper:
    """The sampler of the published code, and the fault of its cache: chol(K) in the place of chol(Z Z^T)."""

    values = symbols("wide", nugget=0.7)

    def noise(self, root_of):
        z_row, d_row, z_col, d_col = (self.values[key] for key in ("z_row", "d_row", "z_col", "d_col"))
        (_, t_row, _), (_, t_col, _) = dense_side(z_row, d_row), dense_side(z_col, d_col)
        (c_row, c_col), (_, p, q, d_o, d_i) = (root_of(z_row, d_row), root_of(z_col, d_col)), SHAPES["wide"]
        white = distributions._standard_normal((d_o, d_i), torch.float64, "cpu")
        e2, e3, e4 = distributions._standard_normal((3, p, q), torch.float64, "cpu")
        joint = c_row @ e2 * d_col + d_row[:, None] * (e3 @ c_col.T) + d_row[:, None] * e4 * d_col
        return white - t_row @ (z_row @ white @ z_col.T + joint) @ t_col.T

    def covariance(self, root_of):
        _, root = affine(lambda: self.noise(root_of))
        return root @ root.T

    def test_without_the_nugget_it_is_ours(self):
        unit = symbols("wide", nugget=0.7) | {"noise_scale": 1.0, "scale": 1.0}
        _, root = affine(InducedNormal.from_locations(**unit).rsample)
        close(self.covariance(lambda z, d: torch.linalg.cholesky(z @ z.T)), root @ root.T)

    def test_with_the_nugget_it_has_just_that_much_extra_covariance(self):
        z_row, d_row, z_col, d_col = (self.values[key] for key in ("z_row", "d_row", "z_col", "d_col"))
        t_row, t_col = dense_side(z_row, d_row)[1], dense_side(z_col, d_col)[1]
        extra = 2 * torch.kron(t_row * d_row**2 @ t_row.T, t_col * d_col**2 @ t_col.T)
        assert extra.diagonal().max() > 1e-3
        right = self.covariance(lambda z, d: torch.linalg.cholesky(z @ z.T))
        wrong = self.covariance(lambda z, d: dense_side(z, d)[0])
        close(wrong - right, extra)


def check_log_prob(distribution, name, tolerance=1e-9):
    value = rand(4, *distribution.batch_shape, *distribution.event_shape, seed=8)
    flat = value.reshape(4, -1, distribution.event_shape.numel())
    truth = [single.log_prob(flat[:, index]) for index, single in enumerate(dense(name))]
    truth = torch.stack(truth, -1).reshape(4, *distribution.batch_shape)
    torch.testing.assert_close(distribution.log_prob(value), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SHAPES)
class TestLogProb:
    def test_is_the_dense_one(self, name):
        check_log_prob(make(name), name)

    def test_without_its_determinant_it_would_be_caught(self, name, monkeypatch):
        monkeypatch.setattr(
            InducedNormal,
            "_explained_complement",
            lambda self: torch.eye(self.rows.rank * self.cols.rank).double(),
        )
        with pytest.raises(AssertionError):
            check_log_prob(make(name), name)

    @pytest.mark.parametrize("noise_scale", [1.0, 0.1])
    def test_float32_is_good_with_tiny_nuggets(self, name, noise_scale):
        rough = {key: value.float() for key, value in symbols(name, nugget=1e-3).items()}
        rough["noise_scale"] = torch.full_like(rough["noise_scale"], noise_scale)
        single = InducedNormal.from_locations(**rough)
        exact = InducedNormal.from_locations(**{key: value.double() for key, value in rough.items()})
        value = single.rsample((3,))
        log_prob, truth = single.log_prob(value), exact.log_prob(value.double())
        assert log_prob.dtype == torch.float32
        torch.testing.assert_close(log_prob.double(), truth, rtol=1e-3, atol=1e-3 * exact.event_shape.numel())

    def test_expanded(self, name):
        values = symbols(name)
        expanded = make(name).expand((4, *make(name).batch_shape))
        assert (expanded.batch_shape, expanded.event_shape) == (
            (4, *make(name).batch_shape),
            make(name).event_shape,
        )
        _, root = affine(expanded.rsample)
        once = torch.block_diag(*[single.covariance_matrix for single in dense(name)])
        close(root @ root.T, torch.block_diag(*[once] * 4))
        value = rand(*make(name).batch_shape, *make(name).event_shape, seed=8)
        log_prob = expanded.log_prob(value)
        assert log_prob.shape == expanded.batch_shape
        close(log_prob, make(name).log_prob(value).expand(expanded.batch_shape))
        assert (
            expanded.mean.shape
            == expanded.variance.shape
            == (4, *values["latent"].shape[:-2], *value.shape[-2:])
        )


# Locations as `from_lora` leaves them: orthonormal, padded with zeros where there are more than the rank.
EMBEDDED = {
    "latent": torch.cat([rand(2, 4), rand(1, 4) * 0]),
    "z_row": torch.eye(3, 2),
    "d_row": torch.full((3,), 1e-3),
    "z_col": torch.cat([torch.eye(2, 5), torch.zeros(2, 5)]),
    "d_col": torch.full((4,), 1e-3),
    "noise_scale": torch.tensor(0.1),
    "scale": torch.tensor(0.3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestDegenerateMaps:
    def values(self, dtype):
        return {name: value.to(dtype).requires_grad_() for name, value in EMBEDDED.items()}

    def test_gradients_of_log_prob(self, dtype):
        values = self.values(dtype)
        value = InducedNormal.from_locations(**values).rsample().detach()
        log_prob = InducedNormal.from_locations(**values).log_prob(value)
        gradients = torch.autograd.grad(log_prob, list(values.values()))
        assert all(gradient.isfinite().all() for gradient in gradients)

    def test_gradients_of_draws(self, dtype):
        values = self.values(dtype)
        loss = InducedNormal.from_locations(**values).rsample().square().sum()
        gradients = torch.autograd.grad(loss, list(values.values()))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ["wide", "tall", "more of both"])
def test_gradients_are_right(name):
    values = {key: value.requires_grad_() for key, value in symbols(name).items()}
    size = make(name).event_shape.numel()

    def log_prob(value, *parts):
        return InducedNormal.from_locations(**dict(zip(values, parts, strict=True))).log_prob(value)

    value = rand(*make(name).event_shape, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(log_prob, (value, *values.values()), atol=1e-5 * size)


def test_latent_of_another_size():
    with pytest.raises(ValueError, match=r"latent has shape \(3, 2\).*should be \(2, 3\)"):
        make("wide", latent=rand(3, 2))


def test_value_of_another_size():
    with pytest.raises(ValueError, match="must match event_shape"):
        make("wide").log_prob(rand(5, 3))
