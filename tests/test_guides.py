"""Every prior, guide and likelihood under plain Pyro; what a guide draws; what it leaves alone."""

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal

from bayeslora_pyro.guides import GUIDES, DeltaGuide, FlowGuide, Guide, MeanFieldGuide
from bayeslora_pyro.models import LIKELIHOODS, BayesianLora, InducingPrior

from .noise import affine
from .small_priors import SMALL, VARIANTS
from .tiny import tiny_batch, tiny_bert, tiny_llama

ALL_PRIORS = SMALL | {
    "by role": lambda: {"A": "gaussian", "B": "point"},
}
ELBOS = {"TraceMeanField_ELBO": TraceMeanField_ELBO, "Trace_ELBO": Trace_ELBO}
BATCHES = dict(zip(LIKELIHOODS, ("classification", "options", "next_token", "regression"), strict=True))


def make_model(prior="inducing", likelihood="classification", *, dtype=torch.float32, seed=0):
    options = {"num_layers": 1, "targets": ["q_proj", "k_proj", "v_proj"], "dtype": dtype}
    if likelihood == "classification":
        peft_model = tiny_bert(dtype=dtype)
    else:
        peft_model = tiny_llama(num_labels=1 if likelihood == "regression" else None, **options)
    return BayesianLora(peft_model, (ALL_PRIORS | VARIANTS)[prior](), likelihood, num_data=20, seed=seed)


def make(prior="inducing", guide="mean_field", likelihood="classification", *, seed=0, **options):
    model = make_model(prior, likelihood, seed=seed, **options)
    return model, GUIDES[guide](model, seed=seed), tiny_batch(BATCHES[likelihood])


def parameters(*modules):
    return [parameter for module in modules for parameter in module.parameters()]


def unmoved(model, guide, batch, elbo, num_steps=2):
    """Takes steps of plain SVI, and returns the parameters that are where they were."""
    names = [name for module in (model, guide) for name, _ in module.named_parameters()]
    before = [parameter.detach().clone() for parameter in parameters(model, guide)]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), elbo)
    losses = torch.tensor([svi.step(batch) for _ in range(num_steps)])
    assert losses.isfinite().all()
    after = parameters(model, guide)
    return [name for name, old, new in zip(names, before, after, strict=True) if torch.equal(old, new)]


def sample_sites(function, *args):
    """The sample sites in order, without plates."""
    nodes = poutine.trace(function).get_trace(*args).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and "." in name}


@pytest.mark.fills_param_store
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", ALL_PRIORS)
class TestPlainPyro:
    def test_svi_moves_every_parameter(self, prior, guide, likelihood):
        assert unmoved(*make(prior, guide, likelihood), TraceMeanField_ELBO()) == []

    def test_predictive_in_parallel(self, prior, guide, likelihood):
        check_predictive(*make(prior, guide, likelihood))


@pytest.mark.fills_param_store
@pytest.mark.parametrize("guide", GUIDES)
class TestPlainPyroOnce:
    @pytest.mark.parametrize("prior", ALL_PRIORS)
    def test_svi_without_closed_forms(self, prior, guide):
        assert unmoved(*make(prior, guide), Trace_ELBO()) == []

    @pytest.mark.parametrize("prior", VARIANTS)
    def test_variant(self, prior, guide):
        assert unmoved(*make(prior, guide), TraceMeanField_ELBO()) == []
        check_predictive(*make(prior, guide))


def check_predictive(model, guide, batch):
    y = model.likelihood.observed(batch)
    del batch["labels"]
    # A site outside all plates has a dimension for them: Pyro puts the draws to the left of the plates.
    shapes = {
        name: (*(() if site["cond_indep_stack"] else (1,)), *site["value"].shape)
        for name, site in sample_sites(guide, batch).items()
    } | {"y": y.shape}
    drawn = Predictive(model, guide=guide, num_samples=5, parallel=True)(batch)
    assert {name: value.shape for name, value in drawn.items()} == {
        name: (5, *rest) for name, rest in shapes.items()
    }
    if all(guide.has_density(stack) for stack in model.stacks if model.prior_of(stack).latent):
        random = [value for name, value in drawn.items() if not name.endswith((".alpha", "y"))]
        assert all(value.unique(dim=0).shape[0] == 5 for value in random)


@pytest.mark.fills_param_store
class TestPlainPyroAgain:
    @pytest.mark.parametrize("guide", GUIDES)
    def test_second_run_after_the_store_was_cleared(self, guide):
        model, guide, batch = make(guide=guide, likelihood="regression")
        assert unmoved(model, guide, batch, TraceMeanField_ELBO()) == []
        reached = [parameter.detach().clone() for parameter in parameters(model, guide)]
        pyro.clear_param_store()
        poutine.trace(guide).get_trace(batch)
        assert all(torch.equal(*pair) for pair in zip(reached, parameters(model, guide), strict=True))
        assert unmoved(model, guide, batch, TraceMeanField_ELBO()) == []

    def test_parameter_without_a_gradient_would_be_caught(self, monkeypatch):
        model, guide, batch = make(likelihood="regression")
        noise_scale = Guide.noise_scale
        monkeypatch.setattr(Guide, "noise_scale", lambda self, stack: noise_scale(self, stack).detach())
        still = [f"{stack.name}.raw_noise_scale" for stack in model.stacks]
        assert unmoved(model, guide, batch, TraceMeanField_ELBO()) == still

    @pytest.mark.parametrize("elbo", ELBOS)
    @pytest.mark.parametrize(
        ("prior", "likelihood"),
        [
            *(
                (name, "classification")
                for name in ALL_PRIORS | VARIANTS
                if name not in ("point", "relative_noise")
            ),
            *(("inducing", name) for name in LIKELIHOODS),
        ],
    )
    def test_auto_normal(self, prior, likelihood, elbo):
        model, _, batch = make(prior, likelihood=likelihood)
        guide = AutoNormal(model)
        guide(batch)
        before = {name: parameter.detach().clone() for name, parameter in guide.named_parameters()}
        assert unmoved(model, guide, batch, ELBOS[elbo]()) == []
        assert {name.split(".", 1)[1].removesuffix("_unconstrained") for name in before} == set(
            sample_sites(model.sample_weights)
        )
        drawn = Predictive(model, guide=guide, num_samples=3, parallel=True)(
            {k: v for k, v in batch.items() if k != "labels"}
        )
        assert drawn["y"].shape == (3, *model.likelihood.observed(batch).shape)

    def test_training_makes_the_loss_smaller(self):
        model, guide, batch = make("gaussian", "mean_field", "regression")
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), TraceMeanField_ELBO())
        losses = torch.tensor([svi.step(batch) for _ in range(100)])
        assert losses[-10:].mean() < 0.5 * losses[:10].mean()


@pytest.mark.usefixtures("local_parameters")
class TestDraws:
    @pytest.mark.parametrize("guide", GUIDES)
    @pytest.mark.parametrize("prior", [*ALL_PRIORS, *VARIANTS])
    def test_sites_are_those_of_the_model(self, prior, guide):
        model, guide, _ = make(prior, guide)
        ours, theirs = sample_sites(guide), sample_sites(model.sample_weights)
        assert list(ours) == list(theirs)
        for name, site in ours.items():
            assert site["fn"].batch_shape == theirs[name]["fn"].batch_shape
            assert site["fn"].event_shape == theirs[name]["fn"].event_shape
            assert site["infer"] == theirs[name]["infer"]
            assert [f.name for f in site["cond_indep_stack"]] == [
                f.name for f in theirs[name]["cond_indep_stack"]
            ]

    def test_moments_of_the_mean_field_guide(self):
        # W has the mean of V lifted, and the covariance F diag(s^2) F^T + lambda^2 (I - P_r x P_c), times scale^2.
        model = BayesianLora(
            tiny_bert(hidden=4, num_layers=1, dtype=torch.float64), InducingPrior(2, 3, nugget=0.3)
        )
        guide = MeanFieldGuide(model, scale=0.4, noise_scale=0.3)
        check_moments(model, guide)

    @pytest.mark.parametrize("fault", [0.5, 2.0])
    def test_other_noise_would_be_caught(self, fault, monkeypatch):
        model = BayesianLora(
            tiny_bert(hidden=4, num_layers=1, dtype=torch.float64), InducingPrior(2, 3, nugget=0.3)
        )
        guide, conditional = MeanFieldGuide(model, scale=0.4, noise_scale=0.3), InducingPrior.conditional
        monkeypatch.setattr(
            InducingPrior,
            "conditional",
            lambda self, stack, latent, noise_scale=1.0: conditional(
                self, stack, latent, fault * noise_scale
            ),
        )
        with pytest.raises(AssertionError):
            check_moments(model, guide)

    @pytest.mark.parametrize("noise_scale", [0.001, 0.1, 0.999])
    def test_noise_scale_starts_where_it_is_told(self, noise_scale):
        model = make_model()
        guide = DeltaGuide(model, noise_scale=noise_scale)
        for stack in model.stacks:
            torch.testing.assert_close(guide.noise_scale(stack), torch.full((len(stack),), noise_scale))

    def test_flow_over_a_point_is_a_point(self):
        model = make_model()
        guide = FlowGuide(model, base="delta", transform="planar")
        with torch.no_grad():
            for parameter in guide.parameters():
                parameter.add_(0.1)
        for stack in model.stacks:
            posterior = guide.get_posterior(stack)
            assert isinstance(posterior, dist.Delta)
            assert torch.equal(posterior.v, guide.get_transform(stack)(guide.get_base_dist(stack).v))


def check_moments(model, guide):
    for stack in model.stacks:
        own = model.prior_of(stack)
        base, scale = guide.get_base_dist(stack).base_dist, getattr(own, stack.name).log_scale.exp()
        conditional = own.conditional(stack, base.loc)
        means, covariances = [], []
        for index in range(len(stack)):
            row, col = conditional.rows.signal[index], conditional.cols.signal[index]
            lift, explained = torch.kron(row.T, col.T), torch.kron(row.T @ row, col.T @ col)
            noise = 0.3**2 * (torch.eye(len(explained)).double() - explained)
            spread = lift @ base.scale[index].flatten().square().diag() @ lift.T
            means.append(scale[index] * lift @ base.loc[index].flatten())
            covariances.append(scale[index] ** 2 * (spread + noise))
        centre, root = affine(lambda name=stack.name: guide()[name])
        torch.testing.assert_close(centre, torch.cat(means), rtol=0, atol=1e-9)
        torch.testing.assert_close(root @ root.T, torch.block_diag(*covariances), rtol=0, atol=1e-9)


class TestErrors:
    def test_a_guide_fills_in_its_methods(self):
        with pytest.raises(TypeError, match="abstract"):
            Guide(make_model())

    @pytest.mark.parametrize("noise_scale", [0.0, 1.0, -1.0])
    @pytest.mark.parametrize("guide", GUIDES.values())
    def test_noise_scale(self, guide, noise_scale):
        with pytest.raises(ValueError, match=f"noise_scale should lie between 0 and 1, and is {noise_scale}"):
            guide(make_model(), noise_scale=noise_scale)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scale": 0.0}, "scale should be positive, and is 0"),
            ({"transform": "glow"}, "transform='glow' is not known. Choose one of affine_autoregressive"),
            ({"base": "glow"}, "base='glow' is not known. Choose one of mean_field, matrix_normal"),
            ({"depth": 0}, "depth must be at least 1"),
        ],
    )
    def test_flow(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            FlowGuide(make_model(), **arguments)
