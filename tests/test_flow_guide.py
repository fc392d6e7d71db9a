"""Every flow as a guide: it fits, predicts, is saved exactly; where it acts, and what it shares."""

import json

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch

from bayeslora_pyro import fit
from bayeslora_pyro.guides import FlowGuide
from bayeslora_pyro.isolation import private_pyro
from bayeslora_pyro.models import BayesianLora, GaussianPrior, InducingPrior
from bayeslora_pyro.parts import build_guide, describe_guide
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.runs import group_parameters
from bayeslora_pyro.transforms import TRANSFORMS, ConditionedTransform, MatrixTransform, StackedTransform

from .flows import ELSEWHERE
from .test_posterior import perturbed
from .tiny import tiny_batch, tiny_bert

PLACES = {
    "rows": {},
    "matrix": {"over": "matrix"},
    "conditioned": {"conditioned": True},
    "matrix, conditioned": {"over": "matrix", "conditioned": True, "embedding_dim": 2},
    "deep": {"transform": "permute+affine_coupling", "depth": 2, "conditioned": True},
}


def model_of(prior=None, **options):
    return BayesianLora(tiny_bert(num_layers=1, **options), prior or InducingPrior(3, 4), num_data=20)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_flow_fits_and_predicts(name):
    model = model_of()
    guide = FlowGuide(model, transform=name)
    before = [parameter.detach().clone() for parameter in guide.parameters()]
    batch = tiny_batch()
    result = fit(model, guide, [batch], num_steps=3, progress=False)
    assert all(torch.tensor(row["elbo"]).isfinite() for row in result.history)
    moved = [not torch.equal(old, new) for old, new in zip(before, guide.parameters(), strict=True)]
    assert all(moved)
    assert result.posterior.predict([batch], 2, seed=0).log_probs.isfinite().all()


@pytest.mark.parametrize(
    "options", [*({"transform": name} for name in TRANSFORMS), *PLACES.values()], ids=[*TRANSFORMS, *PLACES]
)
def test_every_flow_reloads_exactly(options, tmp_path):
    model = model_of()
    posterior = Posterior(model, perturbed(FlowGuide(model, **options, seed=3)))
    posterior.save(tmp_path / "posterior")
    base = tiny_bert(num_layers=1).unload()
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    loaded = Posterior.load(tmp_path / "posterior", base)
    assert loaded.guide.config() == posterior.guide.config()
    for name, weight in posterior.weights(3, seed=4).items():
        assert torch.equal(weight, loaded.weights(3, seed=4)[name])


@pytest.mark.parametrize("place", PLACES)
class TestPlaces:
    def test_it_fits(self, place):
        model = model_of()
        guide = FlowGuide(model, **PLACES[place])
        names = [name for name, _ in guide.named_parameters()]
        before = [parameter.detach().clone() for parameter in guide.parameters()]
        batch = tiny_batch()
        result = fit(model, guide, [batch], num_steps=3, progress=False)
        assert all(torch.tensor(row["elbo"]).isfinite() for row in result.history)
        after = guide.parameters()
        still = [n for n, old, new in zip(names, before, after, strict=True) if torch.equal(old, new)]
        assert still == []
        assert result.posterior.predict([batch], 2, seed=0).log_probs.isfinite().all()

    def test_it_works_on_weights_without_a_latent_matrix(self, place):
        model = model_of(GaussianPrior(), hidden=8)
        guide = perturbed(FlowGuide(model, **PLACES[place]))
        for stack in model.stacks:
            assert guide.get_posterior(stack).rsample().shape == (len(stack), *stack.shape)

    def test_its_description_makes_it_again(self, place):
        model = model_of()
        guide = FlowGuide(model, **PLACES[place])
        again = build_guide(model, json.loads(json.dumps(describe_guide(guide))))
        assert again.config() == guide.config()
        ours, theirs = guide.state_dict(), again.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_description_without_places_is_of_rows():
    # Folders of the first release do not say over or conditioned.
    model = model_of()
    description = describe_guide(FlowGuide(model))
    for name in ("over", "conditioned", "embedding_dim"):
        del description["config"][name]
    assert build_guide(model, description).config() == FlowGuide(model).config()


def test_places_are_where_they_say():
    model = model_of()
    (stack, *_) = model.stacks

    def transform(**options):
        return FlowGuide(model, **options).get_transform(stack)

    assert type(transform()) is StackedTransform
    assert type(transform(conditioned=True)) is ConditionedTransform
    over_matrix = transform(over="matrix", conditioned=True, embedding_dim=2)
    assert type(over_matrix) is MatrixTransform
    assert type(over_matrix.flow) is ConditionedTransform
    assert over_matrix.flow.dim == 3 * 4
    assert over_matrix.flow.embeddings.shape == (len(stack), 2)


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_flow_parameters_are_those_of_the_flows(options):
    # fit gives them a step size of their own
    model = model_of()
    guide = FlowGuide(model, **options)
    _, flows, _ = group_parameters(model, guide)
    names = {name for name, parameter in guide.named_parameters() if any(parameter is flow for flow in flows)}
    assert names == {name for name, _ in guide.named_parameters() if name.startswith("flow_")}
    assert len(flows) == len(names)


class TestFromLora:
    @pytest.mark.parametrize("name", TRANSFORMS)
    def test_every_flow_starts_at_a_trained_lora(self, name):
        model = model_of(InducingPrior(9, 9), dtype=torch.float64)
        guide = FlowGuide(model, transform=name, base="delta", noise_scale=0.1)
        with torch.no_grad():
            for stack in model.stacks:
                guide._own(stack).raw_noise_scale.fill_(-40.0)
        guide.from_lora()
        with private_pyro():
            drawn = guide()
        for stack_name, weights in model.lora_weights().items():
            torch.testing.assert_close(drawn[stack_name], weights, rtol=0, atol=1e-8)

    def test_a_start_that_forgets_the_flow_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(StackedTransform, "preimage", lambda self, y: y)
        with pytest.raises(AssertionError, match="not close"):
            self.test_every_flow_starts_at_a_trained_lora(min(ELSEWHERE & TRANSFORMS.keys()))

    def test_a_flow_that_cannot_start_there_says_so(self):
        model = model_of()
        guide = FlowGuide(model, transform=lambda dim: pyro_transforms.SigmoidTransform())
        with pytest.raises(ValueError, match="does not reach the given value"):
            guide.from_lora()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"over": "columns"}, r"over='columns' is not known\. Choose one of rows, matrix\."),
        ({"transform": "permute+glow"}, r"transform='permute\+glow' is not known: 'glow' is no flow"),
        ({"conditioned": True, "embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"conditioned": True, "transform": "permute"}, "none to condition"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        FlowGuide(model_of(), **arguments)
