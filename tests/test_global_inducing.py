"""Inducing matrices that layers share: their joint covariance, and their divergence."""

import math

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DeltaGuide, MeanFieldGuide
from bayeslora_pyro.models import GlobalInducingPrior

from .exact import close
from .noise import affine, expectation
from .small_priors import moved_model
from .test_inducing_priors import draw_sites

pytestmark = pytest.mark.usefixtures("local_parameters")


def common(num_shared=2, **options):
    return GlobalInducingPrior(2, 3, num_shared=num_shared, share=0.6, nugget=0.3, **options)


def check_global(model):
    """Compares all inducing matrices and all factors of a draw with their dense joint covariance."""
    stacks = model.stacks
    mixing = torch.cat([model.prior_of(stack).mixing(stack).detach() for stack in stacks])
    correlation = mixing @ mixing.T
    correlation.fill_diagonal_(1)
    _, root = affine(lambda: draw_sites(model, "V"))
    covariance = root @ root.T
    close(covariance, torch.kron(correlation, torch.eye(6).double()))
    assert 0.05 < (correlation - torch.eye(len(correlation))).abs().max() < 1

    lifts = []
    for stack in stacks:
        conditional = model.prior_of(stack).conditional(stack, torch.zeros(len(stack), 2, 3).double())
        for row, col, scale in zip(
            conditional.rows.signal.detach(),
            conditional.cols.signal.detach(),
            conditional.scale.detach(),
            strict=True,
        ):
            lifts.append((scale, scale * torch.kron(row.T, col.T)))
    lift = torch.block_diag(*(matrix for _, matrix in lifts))
    noise = torch.block_diag(*(scale**2 * torch.eye(len(m)) - m @ m.T for scale, m in lifts))
    _, root = affine(lambda: draw_sites(model, "W"))
    close(root @ root.T, lift @ covariance @ lift.T + noise, 1e-9)
    white = torch.block_diag(*(scale**2 * torch.eye(len(m)) for scale, m in lifts))
    close((root @ root.T).diagonal(), white.diagonal(), 1e-9)


class TestGlobal:
    @pytest.mark.parametrize("num_shared", [1, 3])
    def test_layers_are_correlated_and_each_is_white(self, num_shared):
        check_global(moved_model(common(num_shared)))

    def test_a_share_instead_of_its_root_would_be_caught(self, monkeypatch):
        mixing = GlobalInducingPrior.mixing
        model = moved_model(common())
        latent_prior = GlobalInducingPrior.latent_prior

        def wrong(self, stack, **given):
            share = mixing(self, stack).square().sum(-1).sqrt()[:, None, None, None]
            return latent_prior(self, stack, U=given["U"] * share)

        monkeypatch.setattr(GlobalInducingPrior, "latent_prior", wrong)
        with pytest.raises(AssertionError):
            check_global(model)

    @pytest.mark.parametrize("counted", [1, 2])
    def test_divergence_is_the_dense_one_with_the_shared_site_once(self, counted, monkeypatch):
        model = moved_model(common(), targets=["query"])
        guide = MeanFieldGuide(model, scale=0.3, noise_scale=0.5)
        if counted == 2:  # the fault: one of two stacks more than there should be
            monkeypatch.setattr(PartsELBO, "parts", counted_twice(PartsELBO.parts))
        latent_sizes = [len(stack) * 6 for stack in model.stacks]
        mixing = torch.cat([model.prior_of(stack).mixing(stack).detach() for stack in model.stacks])
        lift = torch.kron(mixing, torch.eye(6).double())
        shared = 12
        # p(U, V): V = lift U + noise, as one normal.
        noise = (1 - mixing.square().sum(-1)).repeat_interleave(6).diag()
        identity = torch.eye(shared, dtype=torch.float64)
        covariance = torch.cat(
            [torch.cat([identity, lift.T], -1), torch.cat([lift, lift @ lift.T + noise], -1)], -2
        )
        posterior = guide.A_2x4.shared["U"]()
        locs = [
            posterior.mean.flatten(),
            *(guide.get_base_dist(stack).mean.flatten() for stack in model.stacks),
        ]
        scales = [posterior.stddev.flatten(), torch.full((sum(latent_sizes),), 0.3).double()]
        q = MultivariateNormal(torch.cat(locs).detach(), torch.cat(scales).detach().square().diag())
        p = MultivariateNormal(torch.zeros(len(covariance)).double(), covariance)
        weights = sum(len(stack) * math.prod(stack.shape) for stack in model.stacks)
        truth = kl_divergence(q, p) + weights * (0.5**2 / 2 - math.log(0.5) - 0.5)
        found = expectation(lambda: PartsELBO().parts(model.sample_weights, guide).loss())
        if counted == 1:
            close(found, truth, 1e-7)
        else:
            with pytest.raises(AssertionError):
                close(found, truth, 1e-7)

    def test_one_for_each_role_has_shared_sites_of_its_own(self):
        model = moved_model({"A": common(), "B": common()})
        guide = MeanFieldGuide(model)
        for program in (model.sample_weights, guide):
            nodes = poutine.trace(program).get_trace().nodes
            shared = {name for name in nodes if name.endswith(".U")}
            assert shared == {"A.U", "B.U"}
            assert all(nodes[name]["cond_indep_stack"] == () for name in shared)

    def test_point(self):
        guide = DeltaGuide(moved_model(common(scale_prior=0.5)))
        assert isinstance(guide.A_2x4.shared["U"](), dist.Delta)
        assert isinstance(guide.A_2x4.hyper["scale"](), dist.Delta)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_shared": 0}, "num_shared should be at least 1, and is 0"),
            ({"share": 1.0}, "share should lie between 0 and 1, and is 1.0"),
            ({"rows": 0}, "rows should be positive, and is 0"),
        ],
    )
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            GlobalInducingPrior(**arguments)


def counted_twice(parts):
    def wrong(self, *args):
        found = parts(self, *args)
        found.kl["again.U"] = found.kl["AB.U"]
        return found

    return wrong
