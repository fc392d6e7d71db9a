"""The priors: what they sample, what they keep to themselves, and LoRA as their limit."""

import copy
from functools import partial

import pyro
import pyro.poutine as poutine
import pytest
import torch

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DeltaGuide, FlowGuide, MeanFieldGuide
from bayeslora_pyro.models import PRIORS, BayesianLora, GaussianPrior, InducingPrior, PointPrior
from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.posterior import Posterior

from .exact import close
from .noise import affine, expectation
from .small_priors import ALL, RANK, SMALL, draw, small_model
from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

# Sizes p, q of the inducing matrix, from fewer than the rank 2 to more than either side (2 and 8).
SIZES = [(1, 1), (2, 3), (3, 2), (4, 9)]

model_with = partial(small_model, hidden=8)


class TestEveryPrior:
    def test_table_is_complete(self):
        assert SMALL.keys() == PRIORS.keys()
        for name, prior in PRIORS.items():
            assert issubclass(prior, Prior)
            assert SMALL[name]().config().keys() == prior().config().keys()

    @pytest.mark.parametrize("name", ALL)
    def test_samples_in_plates_with_named_dimensions(self, name):
        model = BayesianLora(tiny_llama(), ALL[name]())
        weights = model.sample_weights()
        assert {name: weight.shape for name, weight in weights.items()} == {
            stack.name: (len(stack), *stack.shape) for stack in model.stacks
        }
        trace = poutine.trace(model.sample_weights).get_trace()
        stacks = {stack.name: stack for stack in model.stacks}
        for name_of_site in (name for name in trace.stochastic_nodes if "." in name):
            site, prefix = trace.nodes[name_of_site], name_of_site.rpartition(".")[0]
            in_plate = prefix in stacks  # or shared by all
            assert [frame.name for frame in site["cond_indep_stack"]] == ([prefix] if in_plate else [])
            assert site["fn"].batch_shape == ((len(stacks[prefix]),) if in_plate else ())
            assert len(site["infer"]["event_dims"]) == len(site["fn"].event_shape)

    @pytest.mark.parametrize("name", ALL)
    def test_sites_are_those_it_declares(self, name):
        model = BayesianLora(tiny_llama(), ALL[name]())
        (prior,) = model.priors.values()
        wanted = {prior.shared_site(site) for site in prior.shared_priors()}
        for stack in model.stacks:
            own = {*prior.hyper_priors(stack), prior.latent} if prior.latent else set()
            if own and prior.conditional(stack, prior.initial_latent(stack, torch.Generator())) is not None:
                own.add("W")
            wanted |= {prior.site(stack, site) for site in own}
        trace = poutine.trace(model.sample_weights).get_trace()
        assert {site for site in trace.stochastic_nodes if "." in site} == wanted
        assert {site.rpartition(".")[2] for site in wanted} - {"V", "U", "W", "s"} <= prior.dims.keys()

    @pytest.mark.parametrize("name", PRIORS)
    def test_one_object_serves_several_models(self, name):
        prior = SMALL[name]()
        first, second = model_with(prior), model_with(prior)
        assert not list(prior.parameters())
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(1)
        untouched = model_with(SMALL[name]()).state_dict()
        assert all(torch.equal(value, untouched[key]) for key, value in second.state_dict().items())

    @pytest.mark.parametrize("name", PRIORS)
    def test_one_for_each_role(self, name):
        model = model_with({"A": SMALL[name](), "B": "point"})
        a, b = model.stacks
        assert type(model.prior_of(a)) is PRIORS[name]
        assert type(model.prior_of(b)) is PointPrior
        close(model.sample_weights()[b.name], model.lora_weights()[b.name])

    def test_role_without_a_prior(self):
        with pytest.raises(ValueError, match="has none for B"):
            model_with({"A": "gaussian"})

    def test_unknown_name(self):
        with pytest.raises(
            ValueError,
            match=r"prior='spike' is not known\. Choose one of inducing, global_inducing, gaussian",
        ):
            model_with("spike")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("moved", [0.0, 1.0])
def test_marginal_of_the_weights_is_white_whatever_the_locations(size, moved):
    model = model_with(InducingPrior(*size, scale=0.7, nugget=0.3, learn_scale=False))
    with torch.no_grad():
        for parameter in model.priors.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    for stack in model.stacks:
        centre, root = affine(lambda stack=stack: draw(model, stack))
        identity = torch.eye(len(centre), dtype=torch.float64)
        close(centre, torch.zeros_like(centre))
        close(root @ root.T, 0.49 / stack.shape[1] * identity, 1e-10)


def test_conditional_with_less_noise_would_be_caught(monkeypatch):
    model, original = model_with(InducingPrior(2, 3)), InducingPrior.conditional
    monkeypatch.setattr(
        InducingPrior,
        "conditional",
        lambda self, stack, latent, noise_scale=0.9: original(self, stack, latent, 0.9),
    )
    _, root = affine(lambda: draw(model, model.stacks[0]))
    with pytest.raises(AssertionError):
        close(root @ root.T, 0.09 / 8 * torch.eye(len(root), dtype=torch.float64), 1e-10)


class TestScale:
    @pytest.mark.parametrize(
        ("width_scaled", "shares"), [(True, {"A": 8**-0.5, "B": RANK**-0.5}), (False, {"A": 1, "B": 1})]
    )
    @pytest.mark.parametrize(
        ("prior", "sizes"), [(InducingPrior, {"rows": 2, "cols": 3}), (GaussianPrior, {})]
    )
    def test_per_entry(self, prior, sizes, width_scaled, shares):
        model = model_with(prior(scale=0.5, width_scaled=width_scaled, **sizes))
        for stack in model.stacks:
            _, root = affine(lambda name=stack.name: model.sample_weights()[name])
            close(
                (root @ root.T).diagonal().sqrt(),
                torch.full((len(root),), 0.5 * shares[stack.role]).double(),
                1e-8,
            )

    def test_learned_scale_is_one_per_factor(self):
        model = model_with(InducingPrior(2, 3, learn_scale=True))
        names = {name for name, _ in model.priors.named_parameters() if name.endswith("log_scale")}
        assert names == {f"AB.{stack.name}.log_scale" for stack in model.stacks}
        guide = DeltaGuide(model)
        PartsELBO().parts(model, guide, tiny_batch()).loss().backward()
        gradients = [model.get_parameter(f"priors.{name}").grad for name in names]
        assert all(gradient.shape == (2,) and gradient.all() for gradient in gradients)

    def test_fixed_scale_is_no_parameter_but_saved(self):
        model = model_with(InducingPrior(2, 3, learn_scale=False))
        assert not any(name.endswith("log_scale") for name, _ in model.named_parameters())
        assert any(name.endswith("log_scale") for name in model.state_dict())


def noiseless(guide):
    """Takes all noise out of a guide."""
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.endswith(("raw_noise_scale", "log_scale")):
                parameter.fill_(-80)
    return guide


GUIDES = {"delta": DeltaGuide, "mean_field": MeanFieldGuide, "flow": FlowGuide}


class TestFromLora:
    @pytest.mark.parametrize("guide", GUIDES)
    @pytest.mark.parametrize("size", [size for size in SIZES if min(size) >= RANK])
    def test_without_noise_every_draw_is_that_lora(self, size, guide):
        model = model_with(InducingPrior(*size, nugget=0.1))
        guide = noiseless(GUIDES[guide](model))
        guide.from_lora()
        drawn, batch = guide(), tiny_batch()
        for name, weights in model.lora_weights().items():
            close(drawn[name], weights)
        plain = model.adapter.peft_model(**{key: value for key, value in batch.items() if key != "labels"})
        close(model.run_with(drawn, batch).logits, plain.logits)

    @pytest.mark.parametrize("prior", ALL)
    def test_every_prior(self, prior):
        model = model_with(ALL[prior]())
        guide = noiseless(MeanFieldGuide(model))
        weights = {name: value + 0.1 * value**2 for name, value in model.lora_weights().items()}
        guide.from_lora(weights)
        drawn = model.sample_weights() | guide()
        for name, value in weights.items():
            close(drawn[name], value)

    @pytest.mark.parametrize("size", [(2, 2), (4, 9)])
    @pytest.mark.parametrize("kind", ["noise_scale", "scale"])
    def test_deviation_is_linear_in_the_noise(self, size, kind):
        steps = torch.logspace(-1, -6, 6, dtype=torch.float64)
        deviations = []
        for step in steps:
            model = model_with(InducingPrior(*size))
            options = {"noise_scale": 1e-15, "scale": 1e-15} | {kind: step.item()}
            guide = MeanFieldGuide(model, **options)
            guide.from_lora()
            torch.manual_seed(1)
            drawn = guide()
            deviations.append(
                max((drawn[name] - value).norm() for name, value in model.lora_weights().items())
            )
        slopes = torch.stack(deviations).log().diff() / steps.log().diff()
        close(slopes, torch.ones_like(slopes), 1e-5)

    @pytest.mark.parametrize("guide", GUIDES)
    @pytest.mark.parametrize("size", [(2, 2), (4, 9)])
    def test_posterior_mean_is_that_lora(self, size, guide):
        model = model_with(InducingPrior(*size))
        guide = GUIDES[guide](model, noise_scale=0.5)
        guide.from_lora()
        if isinstance(guide, FlowGuide):  # through a flow, the mean is an average of draws
            noiseless(guide)
        mean = Posterior(model, guide).mean_adapter()
        for name, weights in model.lora_weights().items():
            close(mean[name], weights)

    def test_scale_forgotten_would_be_caught(self, monkeypatch):
        model = model_with(InducingPrior(2, 2))
        embed = InducingPrior.embed
        monkeypatch.setattr(InducingPrior, "embed", lambda self, *args: 0.3 * embed(self, *args))
        guide = noiseless(DeltaGuide(model))
        guide.from_lora()
        with pytest.raises(AssertionError):
            close(guide()["A_2x8"], model.lora_weights()["A_2x8"])

    def test_too_few_inducing_variables_give_the_best_approximation(self):
        model = model_with(InducingPrior(1, 9))
        guide = noiseless(DeltaGuide(model))
        guide.from_lora()
        drawn = guide()
        for name, weights in model.lora_weights().items():
            left, singular, right = torch.linalg.svd(weights, full_matrices=False)
            close(drawn[name], left[..., :1] * singular[..., None, :1] @ right[..., :1, :])

    def test_start_of_lora_itself_where_b_is_zero(self):
        model = BayesianLora(tiny_bert(random_b=False), InducingPrior(3, 4))
        guide = noiseless(MeanFieldGuide(model))
        guide.from_lora()
        assert guide()["B_16x2"].abs().max() < 1e-30

    def test_float32_is_close(self):
        model = BayesianLora(tiny_bert(), InducingPrior())
        guide = noiseless(MeanFieldGuide(model))
        guide.from_lora()
        for name, value in guide().items():
            close(value, model.lora_weights()[name], 1e-5)


def test_mean_of_the_update_is_the_product_of_the_means():
    # A and B are independent under the guide, and B A is of degree two in the noise.
    model = model_with(InducingPrior(2, 2))
    guide = MeanFieldGuide(model, scale=0.3, noise_scale=0.5)
    mean = Posterior(model, guide).mean_adapter()

    def update():
        drawn = guide()
        return drawn["B_8x2"] @ drawn["A_2x8"]

    close(expectation(update), mean["B_8x2"] @ mean["A_2x8"], 1e-10)


def test_prior_is_left_by_embedding_but_its_marginal_stays():
    model = model_with(InducingPrior(3, 4))
    DeltaGuide(model).from_lora()
    _, root = affine(lambda: draw(model, model.stacks[0]))
    close(root @ root.T, 0.09 / 8 * torch.eye(len(root), dtype=torch.float64), 1e-8)


def test_deepcopy_keeps_model_and_guide_together():
    model = model_with(InducingPrior(2, 3))
    guide = MeanFieldGuide(model)
    other_model, other_guide = copy.deepcopy((model, guide))
    assert other_guide.model is other_model
    for own in (model, guide):
        with torch.no_grad():
            for parameter in own.parameters():
                parameter.add_(1)
    torch.manual_seed(0)
    drawn = other_guide()
    fresh = model_with(InducingPrior(2, 3))
    torch.manual_seed(0)
    for name, value in MeanFieldGuide(fresh)().items():
        assert torch.equal(value, drawn[name])


@pytest.mark.parametrize("argument", ["rows", "cols", "scale", "nugget"])
def test_sizes_and_scales_are_positive(argument):
    with pytest.raises(ValueError, match=f"{argument} should be positive, and is 0"):
        InducingPrior(**{argument: 0})


def test_sites_replay():
    model = model_with(InducingPrior(2, 3))
    values = {"A_2x8.W": torch.zeros(2, 2, 8, dtype=torch.float64)}
    assert not pyro.condition(model.sample_weights, values)()["A_2x8"].any()
