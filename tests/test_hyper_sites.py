"""The sites above the latent one: how every guide approximates them, what they cost, and where they are seen."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bayeslora_pyro import elbo as elbo_module
from bayeslora_pyro import to_arviz
from bayeslora_pyro.diagnostics.arrays import datasets
from bayeslora_pyro.elbo import PartsELBO, divergence
from bayeslora_pyro.guides import GUIDES, FlowGuide, Guide, MeanFieldGuide
from bayeslora_pyro.guides.delta import PointGuide
from bayeslora_pyro.guides.sites import MeanFieldSite, PointSite
from bayeslora_pyro.models import ArdPrior, BayesianLora, HorseshoePrior, InducingPrior
from bayeslora_pyro.posterior import Posterior

from .exact import close, perturb
from .small_priors import VARIANTS
from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def make(prior, guide=MeanFieldGuide, **options):
    model = BayesianLora(tiny_bert(dtype=torch.float64), prior, num_data=20)
    guide = guide(model, **options)
    return model, perturb(guide, 0.1, seed=3)


def site_of(prior, batch_shape=(3,), family=MeanFieldSite):
    return family(prior, batch_shape, torch.Generator().manual_seed(0))


def full(*shape, value=2.0):
    return torch.full(shape, value, dtype=torch.float64)


class TestSite:
    @pytest.mark.parametrize(
        ("prior", "start"),
        [
            (dist.LogNormal(full(3, value=0.7), full(3)), math.exp(0.7)),
            (dist.HalfCauchy(full(4, 5)).to_event(2), 2.0),
            (dist.Gamma(full(4), full(4, value=5.0)).to_event(1), 0.4),
        ],
        ids=["log-normal", "half-Cauchy", "gamma"],
    )
    @pytest.mark.parametrize("family", [MeanFieldSite, PointSite])
    def test_positive_one_starts_at_the_centre_of_its_prior(self, prior, start, family):
        site = site_of(prior, family=family)
        shape = (3, *prior.event_shape)
        close(site.location.detach(), torch.full(shape, start, dtype=torch.float64))
        posterior = site()
        assert posterior.batch_shape + posterior.event_shape == shape
        assert posterior.event_shape == prior.event_shape
        assert (posterior.sample((100,)) > 0).all()

    @pytest.mark.parametrize("family", [MeanFieldSite, PointSite])
    def test_real_one_starts_at_a_draw(self, family):
        prior = dist.Normal(full(2000, value=5.0), full(2000, value=0.1)).to_event(1)
        location = site_of(prior, (), family).location.detach()
        assert abs(location.mean() - 5) < 0.02
        assert abs(location.std() - 0.1) < 0.02
        assert (site_of(prior, (), family)().sample((9,)) < 0).sum() == 0

    @pytest.mark.parametrize("guide", GUIDES)
    def test_every_guide_has_them(self, guide):
        model, guide = make(VARIANTS["global inducing, random scale"](), GUIDES[guide])
        point = isinstance(getattr(guide, "base", guide), PointGuide)
        first, *others = (guide._own(stack) for stack in model.stacks)
        assert [list(own.shared) for own in (first, *others)] == [["U"], *[[]] * len(others)]
        for own in (first, *others):
            assert isinstance(own.hyper["scale"], PointSite if point else MeanFieldSite)

    def test_a_flow_over_a_point_has_points(self):
        model, guide = make(ArdPrior(concentration=2.0), FlowGuide, base="delta")
        assert isinstance(guide._own(model.stacks[0]).hyper["precision"], PointSite)


def check_log_normal(model, guide):
    parts = PartsELBO().parts(model, guide, tiny_batch())
    for stack in model.stacks:
        site, prior = guide._own(stack).hyper["scale"], model.prior_of(stack)
        centre = full(value=math.log(0.3 / stack.shape[1] ** 0.5))
        truth = kl_divergence(
            Normal(site.loc, site.log_scale.exp()), Normal(centre, full(value=prior.scale_prior))
        ).sum()
        close(parts.kl[f"{stack.name}.scale"].detach(), truth.detach())
    sums = {f"kl_{name}" for name in ("scale", "V", "W")}
    assert sums <= parts.values().keys()
    return parts


class TestDivergence:
    def test_of_log_normals_is_that_of_normals(self):
        check_log_normal(*make(InducingPrior(2, 3, scale_prior=0.5)))

    def test_the_other_way_round_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(elbo_module, "kl_divergence", lambda q, p: kl_divergence(p, q))
        with pytest.raises(AssertionError):
            check_log_normal(*make(InducingPrior(2, 3, scale_prior=0.5)))

    @pytest.mark.parametrize("jacobian", [True, False])
    def test_of_a_gamma_is_right_in_the_mean(self, jacobian):
        a, b = 2.0, 5.0
        prior, site = dist.Gamma(full(4, value=a), full(4, value=b)).to_event(1), None
        site = site_of(prior, ())
        q, m, s = site(), site.loc.detach(), site.log_scale.detach().exp()
        values = q.sample((20000,))
        estimates = divergence({"fn": q, "value": values}, {"fn": prior})[0].detach()
        if not jacobian:  # the fault: the density of the logarithm
            estimates = estimates + values.log().sum(-1)
        entropy = m + 0.5 * (2 * math.pi * math.e * s**2).log()
        log_p = (a - 1) * m - b * (m + s**2 / 2).exp() + a * math.log(b) - math.lgamma(a)
        truth, error = (-entropy - log_p).sum(), estimates.std() / len(estimates) ** 0.5
        assert (abs(estimates.mean() - truth) < 5 * error) == jacobian

    def test_of_each_hyper_site_is_logged_apart(self):
        model, guide = make(HorseshoePrior())
        values = PartsELBO().parts(model, guide, tiny_batch()).values()
        kinds = {"kl_global_scale", "kl_local_scale", "kl_W"}
        assert {name for name in values if name.startswith("kl_")} == kinds
        assert values["kl"] == pytest.approx(sum(values[kind] for kind in kinds))


def check_mean(posterior):
    """Compares the posterior mean with the mean over many draws."""
    mean, guide = posterior.mean_adapter(), posterior.guide
    with torch.no_grad():
        for stack in posterior.stacks:
            prior, size = posterior.model.prior_of(stack), (20000,)
            hyper = {name: site().sample(size) for name, site in guide._own(stack).hyper.items()}
            latent = guide.get_posterior(stack).sample(size)
            draws = prior.conditional(stack, latent, **hyper).mean
            error = draws.std(0) / size[0] ** 0.5
            assert ((draws.mean(0) - mean[stack.name]).abs() < 5.5 * error).all()


class TestPosterior:
    def noisy(self):
        model, guide = make(InducingPrior(2, 3, scale_prior=0.5), scale=0.1)
        with torch.no_grad():
            for stack in model.stacks:
                guide._own(stack).hyper["scale"].log_scale.fill_(-0.3)
        return Posterior(model, guide)

    def test_mean_adapter_is_the_mean_over_the_scale_too(self):
        check_mean(self.noisy())

    def test_the_median_of_the_scale_would_be_caught(self, monkeypatch):
        posterior = self.noisy()
        monkeypatch.setattr(
            Guide, "hyper_means", lambda self, stack: {"scale": self._own(stack).hyper["scale"].location}
        )
        with pytest.raises(AssertionError):
            check_mean(posterior)

    @pytest.mark.parametrize("name", VARIANTS)
    def test_draws_have_names_for_their_dimensions(self, name):
        model, guide = make(VARIANTS[name]())
        posterior = Posterior(model, guide)
        draws, prior_draws = posterior.sample(3), posterior.sample_prior(3)
        assert draws.keys() == prior_draws.keys() == posterior.site_dims.keys()
        for site, dims in posterior.site_dims.items():
            assert draws[site].dim() == prior_draws[site].dim() == 1 + len(dims)
            assert (dims[0] == "adapter") == (site.rpartition(".")[0] in {s.name for s in model.stacks})
        log_p, log_q = posterior.log_weights(3)
        assert log_p.isfinite().all()
        assert log_q.isfinite().all()

    def test_arviz_sees_them(self):
        model, guide = make(VARIANTS["global inducing, random scale"]())
        groups = datasets(to_arviz(Posterior(model, guide), num_draws=4))
        for group in ("posterior", "prior"):
            assert groups[group]["AB.U"].dims == (
                "chain", "draw", "shared_matrix", "inducing_row", "inducing_col",
            )  # fmt: skip
            assert groups[group]["A_2x16.scale"].dims == ("chain", "draw", "adapter")
