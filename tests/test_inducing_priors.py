"""Inducing priors: plain and whitened inducing matrices are one model, and a scale may be random."""

import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.linalg import InducingMap
from bayeslora_pyro.models import InducingPrior

from .exact import close, rand
from .noise import affine
from .small_priors import draw, moved_model

pytestmark = pytest.mark.usefixtures("local_parameters")


def draw_sites(model, kind):
    """All sites of a kind in one draw from the prior, one after the other."""
    nodes = poutine.trace(model.sample_weights).get_trace().nodes
    return torch.cat([site["value"].flatten() for name, site in nodes.items() if name.endswith(f".{kind}")])


def log_joint(model, stack, **values):
    """The log-density of each factor of a stack, and of what is above it. Shape `(L,)`."""
    data = {f"{stack.name}.{name}": value for name, value in values.items()}
    trace = poutine.trace(pyro.condition(lambda: draw(model, stack), data)).get_trace()
    trace.compute_log_prob()
    return sum(trace.nodes[name]["log_prob"] for name in data).detach()


def sides(model, stack):
    """The dense covariances of the rows and of the columns of the inducing matrices, and their roots."""
    conditional = model.prior_of(stack).conditional(stack, torch.zeros(len(stack), 2, 3).double())
    pairs = ((m.locations.detach(), m.nuggets.detach()) for m in (conditional.rows, conditional.cols))
    covariances = [z @ z.mT + d.square().diag_embed() for z, d in pairs]
    return covariances, [torch.linalg.cholesky(k) for k in covariances]


def plain(**options):
    return InducingPrior(2, 3, scale=0.7, nugget=0.3, learn_scale=False, whitened=False, **options)


def check_plain(model, other):
    """Compares the plain model with the whitened one, by a change of variables, and with dense covariances."""
    for stack in model.stacks:
        (k_row, k_col), (l_row, l_col) = sides(model, stack)
        latent, weights = rand(len(stack), 2, 3, seed=1), rand(len(stack), *stack.shape, seed=2)
        log_det = 3 * l_row.logdet() + 2 * l_col.logdet()
        whitened = log_joint(other, stack, V=latent, W=weights) - log_det
        close(log_joint(model, stack, U=l_row @ latent @ l_col.mT, W=weights), whitened)
        centre, root = affine(lambda stack=stack: draw(model, stack))
        close(centre, torch.zeros_like(centre))
        close(root @ root.T, 0.49 / stack.shape[1] * torch.eye(len(root)).double())
        _, root = affine(lambda stack=stack: draw_sites(model, "U"))
        size = slice(0, 12) if stack.role == "A" else slice(12, 24)
        dense = [torch.kron(row, col) for row, col in zip(k_row, k_col, strict=True)]
        close((root @ root.T)[size, size], torch.block_diag(*dense))


def whitened_like(model):
    other = moved_model(InducingPrior(2, 3, scale=0.7, nugget=0.3, learn_scale=False))
    other.load_state_dict(model.state_dict())
    return other


class TestPlain:
    def test_is_the_whitened_model(self):
        model = moved_model(plain())
        check_plain(model, whitened_like(model))

    def test_a_conditional_that_forgets_to_whiten_would_be_caught(self, monkeypatch):
        model = moved_model(plain())
        monkeypatch.setattr(InducingMap, "whiten", lambda self, inducing: inducing)
        with pytest.raises(AssertionError):
            check_plain(model, whitened_like(model))

    def test_divergence_of_the_weights_is_a_closed_form(self):
        model = moved_model(plain())
        guide = MeanFieldGuide(model, scale=0.2, noise_scale=0.3)
        parts = PartsELBO().parts(model.sample_weights, guide)
        for stack in model.stacks:
            per_entry = 0.3**2 / 2 - math.log(0.3) - 0.5
            close(parts.kl[f"{stack.name}.W"].detach(), len(stack) * math.prod(stack.shape) * per_entry)

    def test_divergence_of_the_inducing_matrix_is_the_dense_one(self):
        model = moved_model(plain())
        guide = MeanFieldGuide(model, scale=0.2)
        parts = PartsELBO().parts(model.sample_weights, guide)
        for stack in model.stacks:
            (k_row, k_col), _ = sides(model, stack)
            total = 0.0
            for loc, row, col in zip(
                guide.get_base_dist(stack).base_dist.loc.detach(), k_row, k_col, strict=True
            ):
                q = MultivariateNormal(loc.flatten(), 0.04 * torch.eye(6).double())
                p = MultivariateNormal(torch.zeros(6).double(), torch.kron(row, col))
                total = total + kl_divergence(q, p)
            close(parts.kl[f"{stack.name}.U"].detach(), total)

    @pytest.mark.parametrize("scale_prior", [None, 0.5])
    def test_warm_start(self, scale_prior):
        model = moved_model(plain(scale_prior=scale_prior))
        guide = MeanFieldGuide(model, scale=1e-15, noise_scale=1e-15)
        with torch.no_grad():
            for name, parameter in guide.named_parameters():
                if ".hyper." in name:  # a scale that has moved, and hardly varies
                    parameter.fill_(-50 if name.endswith("log_scale") else 0.3)
        guide.from_lora()
        drawn = guide()
        for name, weights in model.lora_weights().items():
            close(drawn[name], weights, 1e-8)


def random_scale(scale_prior=0.4):
    return InducingPrior(2, 3, scale=0.7, nugget=0.3, scale_prior=scale_prior)


def check_random_scale(model, scale=0.7, deviation=0.4):
    for stack in model.stacks:
        value = torch.tensor([0.2, 1.9], dtype=torch.float64)
        _, root = affine(
            lambda stack=stack, value=value: pyro.condition(draw, {f"{stack.name}.scale": value})(
                model, stack
            )
        )
        size = math.prod(stack.shape)
        close(root @ root.T, value.square().repeat_interleave(size).diag())
        centre = math.log(scale / stack.shape[1] ** 0.5)
        truth = -0.5 * ((value.log() - centre) / deviation) ** 2 - (value * deviation).log()
        close(log_joint(model, stack, scale=value), truth - 0.5 * math.log(2 * math.pi))


class TestRandomScale:
    def test_density_and_weights_given_it(self):
        check_random_scale(moved_model(random_scale()))

    def test_a_deviation_taken_for_a_variance_would_be_caught(self):
        with pytest.raises(AssertionError):
            check_random_scale(moved_model(random_scale(0.4**0.5)))

    def test_is_not_learned_as_well(self):
        assert not any(
            name.endswith("log_scale") for name, _ in moved_model(random_scale()).named_parameters()
        )

    def test_deviation_is_positive(self):
        with pytest.raises(ValueError, match="scale_prior should be positive, and is 0"):
            InducingPrior(scale_prior=0.0)
