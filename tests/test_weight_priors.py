"""Priors over the entries of a factor: their densities against closed and dense forms, and what ARD and ranks mean."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from scipy.special import exp1, gammaln
from torch.distributions import MultivariateNormal

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import (
    ArdPrior,
    BayesianLora,
    HorseshoePrior,
    LaplacePrior,
    MatrixNormalPrior,
)

from .exact import close
from .noise import affine
from .small_priors import HIDDEN, RANK, draw, moved_model
from .tiny import tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def log_joint(model, stack, **values):
    """The log-density of each factor of a stack, and of its hyper-sites, at given values. Shape `(..., L)`."""
    data = {f"{stack.name}.{name}": value for name, value in values.items()}
    trace = poutine.trace(pyro.condition(lambda: draw(model, stack), data)).get_trace()
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in data)


def weights_of(stack, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(stack), *stack.shape, generator=generator, dtype=torch.float64)


def integrate(log_density, low=-60.0, high=60.0, num=20001):
    """The logarithm of the integral over a positive number, by the trapezoid rule in its logarithm."""
    grid = torch.linspace(low, high, num, dtype=torch.float64)
    return (log_density(grid.exp()) + grid).logsumexp(0) + math.log((high - low) / (num - 1))


def check_laplace(model):
    for stack in model.stacks:
        weights, scale = weights_of(stack), 0.7 / stack.shape[1] ** 0.5
        truth = -weights.abs().sum((-2, -1)) / scale - math.prod(stack.shape) * math.log(2 * scale)
        close(log_joint(model, stack, W=weights), truth)


class TestLaplace:
    def test_density(self):
        check_laplace(moved_model(LaplacePrior(0.7, width_scaled=True)))

    def test_another_scale_would_be_caught(self):
        with pytest.raises(AssertionError):
            check_laplace(moved_model(LaplacePrior(0.7 / 2**0.5, width_scaled=True)))

    def test_divergence_is_a_closed_form(self):
        model = moved_model(LaplacePrior(0.7))
        parts = PartsELBO().parts(model.sample_weights, MeanFieldGuide(model, scale=0.4))
        again = PartsELBO().parts(model.sample_weights, MeanFieldGuide(model, scale=0.4))
        assert parts.kl.keys() == {f"{stack.name}.W" for stack in model.stacks}
        assert all(torch.equal(value, again.kl[name]) for name, value in parts.kl.items())


def check_matrix_normal(model, transposed=False):
    """Compares draws and density with one dense normal per factor."""
    for stack in model.stacks:
        prior = model.prior_of(stack).latent_prior(stack)
        trils = [tril.expand(len(stack), *tril.shape[-2:]) for tril in (prior.row_tril, prior.col_tril)]
        covariances = [torch.kron(row @ row.T, col @ col.T).detach() for row, col in zip(*trils, strict=True)]
        centre, root = affine(lambda stack=stack: draw(model, stack))
        close(centre, torch.zeros_like(centre))
        close(root @ root.T, torch.block_diag(*covariances))
        weights = weights_of(stack)
        flat = (weights.mT if transposed else weights).flatten(1)
        dense = [
            MultivariateNormal(torch.zeros_like(w), c).log_prob(w)
            for w, c in zip(flat, covariances, strict=True)
        ]
        close(log_joint(model, stack, W=weights).detach(), torch.stack(dense))


class TestMatrixNormal:
    @pytest.mark.parametrize("shared", [False, True])
    def test_is_a_dense_normal(self, shared):
        check_matrix_normal(moved_model(MatrixNormalPrior(0.6, shared=shared)))

    def test_the_transposed_matrix_would_be_caught(self):
        with pytest.raises(AssertionError):
            check_matrix_normal(moved_model(MatrixNormalPrior(0.6)), transposed=True)

    def test_starts_at_independent_entries(self):
        peft_model = tiny_bert(rank=RANK, hidden=HIDDEN, dtype=torch.float64)
        model = BayesianLora(peft_model, MatrixNormalPrior(0.6, width_scaled=True))
        for stack in model.stacks:
            _, root = affine(lambda stack=stack: draw(model, stack))
            close(root @ root.T, 0.36 / stack.shape[1] * torch.eye(len(root)).double())

    def test_learned_by_the_elbo(self):
        # The best covariance for given weights has them as its sample: the KL of a guide falls to it.
        model = moved_model(MatrixNormalPrior(shared=True))
        guide = MeanFieldGuide(model, scale=0.3)
        optimizer = torch.optim.Adam(model.priors.parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            optimizer.zero_grad()
            losses.append(PartsELBO().parts(model.sample_weights, guide).loss())
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < losses[0] - 5


def check_student(model, concentration=2.5, scale=0.8):
    r"""Each rank is a multivariate Student t of :math:`2a` degrees of freedom and scale :math:`\sigma` on its own."""
    for stack in model.stacks:
        weights = torch.zeros(len(stack), *stack.shape, dtype=torch.float64)
        weights[:] = weights_of(stack)[:1]
        ranks = weights[0] if stack.role == "A" else weights[0].T
        size, freedom = ranks.shape[1], 2 * concentration
        truth = sum(
            gammaln((freedom + size) / 2) - gammaln(freedom / 2) - size / 2 * math.log(freedom * math.pi)
            - size * math.log(scale) - (freedom + size) / 2 * math.log1p(float(w.square().sum()) / freedom / scale**2)
            for w in ranks
        )  # fmt: skip
        grid = torch.linspace(-25, 15, 1501, dtype=torch.float64)
        # The ranks are independent: vary their precisions together, one by one.
        first = log_joint(model, stack, W=weights, precision=torch.ones(len(stack), RANK).double())[0]
        total = first
        for rank in range(RANK):
            precision = torch.ones(len(grid), len(stack), RANK, dtype=torch.float64)
            precision[..., rank] = grid.exp()[:, None]
            values = log_joint(model, stack, W=weights, precision=precision)[:, 0] + grid
            total = total + values.logsumexp(0) + math.log(float(grid[1] - grid[0])) - first
        close(total, truth, 1e-6)


class TestArd:
    def test_marginal_is_a_student_t(self):
        check_student(moved_model(ArdPrior(0.8, concentration=2.5)))

    def test_a_rate_without_the_concentration_would_be_caught(self, monkeypatch):
        gamma = dist.Gamma
        monkeypatch.setattr(dist, "Gamma", lambda a, b: gamma(a, b / a))
        with pytest.raises(AssertionError):
            check_student(moved_model(ArdPrior(0.8, concentration=2.5)))

    def test_learned_precisions_belong_to_ranks(self):
        model = moved_model(ArdPrior(0.8))
        for stack in model.stacks:
            _, root = affine(lambda stack=stack: draw(model, stack))
            variances = (root @ root.T).diagonal().reshape(len(stack), *stack.shape)
            precision = model.prior_of(stack).precision(stack).detach()
            assert precision.shape == (len(stack), RANK)
            assert precision.unique().numel() == len(stack) * RANK
            expected = 1 / (precision[..., None] if stack.role == "A" else precision[:, None, :])
            close(variances, expected.expand_as(variances))

    @pytest.mark.parametrize("factor", [1.0, 1.5])
    def test_best_precision_is_that_of_type_ii_maximum_likelihood(self, factor):
        model = moved_model(ArdPrior())
        guide = MeanFieldGuide(model, scale=0.4)
        for stack in model.stacks:
            dim = -1 if stack.role == "A" else -2
            second = guide.get_base_dist(stack).base_dist.loc.square() + 0.4**2
            with torch.no_grad():
                log_precision = getattr(model.prior_of(stack), f"log_precision_{stack.name}")
                log_precision.copy_(-second.mean(dim).log() + math.log(factor))
        PartsELBO().parts(model.sample_weights, guide).loss().backward()
        largest = max(parameter.grad.abs().max() for parameter in model.priors.parameters())
        assert (largest < 1e-12) == (factor == 1.0)  # any other precision would be caught

    def test_drawn_precisions_have_no_one_value(self):
        model = moved_model(ArdPrior(concentration=2.5))
        with pytest.raises(ValueError, match=r"draw them with Posterior\.sample, as 'A_2x4\.precision'"):
            model.prior_of(model.stacks[0]).precision(model.stacks[0])

    def test_concentration_is_positive(self):
        with pytest.raises(ValueError, match="concentration should be positive, or None, and is 0"):
            ArdPrior(concentration=0.0)


def check_horseshoe(model, scale=0.6):
    r"""Given :math:`\tau`, an entry has the density :math:`e^z E_1(z) / \tau \sqrt{2 \pi^3}`, `z = w² / 2 τ²`."""
    stack = model.stacks[0]
    for w, tau in ((0.1, 0.5), (1.3, 0.5), (0.7, 2.0)):
        weights = torch.full((len(stack), *stack.shape), w, dtype=torch.float64)
        tau_value = torch.full((len(stack),), tau, dtype=torch.float64)

        def log_density(local, weights=weights, tau=tau_value):
            ones = torch.ones(len(local), len(stack), *stack.shape, dtype=torch.float64)
            values = {"W": weights, "local_scale": local[:, None, None, None] * ones, "global_scale": tau}
            others = math.log(2 / math.pi / float(scale * (1 + (tau[0] / scale) ** 2)))
            # All entries move together: one of them has its share of the sum.
            return (log_joint(model, stack, **values)[:, 0] - others) / math.prod(stack.shape)

        z = w**2 / 2 / tau**2
        truth = z + math.log(exp1(z)) - math.log(tau) - 0.5 * math.log(2 * math.pi**3)
        close(integrate(log_density), truth, 1e-6)


class TestHorseshoe:
    def test_marginal_of_an_entry(self):
        check_horseshoe(moved_model(HorseshoePrior(0.6)))

    def test_a_half_normal_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(dist, "HalfCauchy", dist.HalfNormal)
        with pytest.raises(AssertionError):
            check_horseshoe(moved_model(HorseshoePrior(0.6)))

    def test_most_draws_are_small_and_some_are_large(self):
        model = moved_model(HorseshoePrior(0.1))
        size = torch.cat([draw(model, model.stacks[0]).flatten().abs() for _ in range(400)])
        assert (size < 0.1).double().mean() > 0.4
        assert (size > 1.0).double().mean() > 0.05
