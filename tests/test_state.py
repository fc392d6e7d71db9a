"""The state of models and guides: seeds, copies, files, caches, precision."""

import copy

import pytest
import safetensors.torch
import torch

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import GUIDES
from bayeslora_pyro.guides.delta import PointGuide
from bayeslora_pyro.linalg import InducingMap
from bayeslora_pyro.models import PRIORS, BayesianLora, InducingPrior

from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")

SMALL = PRIORS | {"inducing": lambda: InducingPrior(3, 4)}


def make(prior="inducing", guide="mean_field", *, seed=0, dtype=torch.float32):
    model = BayesianLora(tiny_bert(dtype=dtype), SMALL[prior](), num_data=20, seed=seed)
    return model, GUIDES[guide](model, seed=seed), tiny_batch()


def parameters(*modules):
    return [parameter for module in modules for parameter in module.parameters()]


def draw(model, guide, batch, seed=0):
    """The output of the language model under one draw."""
    torch.manual_seed(seed)
    return model.run_with(model.sample_weights() | guide(), batch).logits


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", ["inducing", "global_inducing", "gaussian", "horseshoe", "point"])
class TestState:
    @pytest.mark.usefixtures("untouched_rng")
    def test_constructors_leave_the_generators_alone(self, prior, guide):
        make(prior, guide)

    def test_factors_of_one_shape_differ(self, prior, guide):
        model, guide, _ = make(prior, guide)
        for name, parameter in [*model.priors.named_parameters(), *guide.named_parameters()]:
            if parameter.unique().numel() > 1:  # not the constants, such as nuggets
                assert not torch.equal(parameter[0], parameter[1]), name

    def test_same_seed_same_start(self, prior, guide):
        (model, own, batch), (same, same_guide, _), (other, other_guide, _) = (
            make(prior, guide, seed=seed) for seed in (0, 0, 1)
        )
        assert torch.equal(draw(model, own, batch), draw(same, same_guide, batch))
        if prior == "inducing":
            assert not torch.equal(draw(model, own, batch), draw(other, other_guide, batch))

    def test_same_seed_same_draw(self, prior, guide):
        model, guide, batch = make(prior, guide)
        assert torch.equal(draw(model, guide, batch), draw(model, guide, batch))
        noisy = "V" if isinstance(guide, PointGuide) else "VWs"  # a point of the weights has no noise
        if (model.prior_of(model.stacks[0]).latent or "none") in noisy:
            assert not torch.equal(draw(model, guide, batch), draw(model, guide, batch, seed=1))

    def test_draws_change_no_state(self, prior, guide):
        model, guide, batch = make(prior, guide)
        before = copy.deepcopy((model.state_dict(), guide.state_dict()))
        with torch.no_grad():
            draw(model, guide, batch)
        for old, new in zip(before, (model.state_dict(), guide.state_dict()), strict=True):
            assert old.keys() == new.keys()
            assert all(torch.equal(old[name], new[name]) for name in old)

    def test_fresh_ones_draw_the_same_after_a_step(self, prior, guide):
        check_fresh_ones(prior, guide)

    def test_half_precision_base(self, prior, guide):
        model, guide, batch = make(prior, guide)
        half, _, _ = make(prior, dtype=torch.bfloat16)
        torch.manual_seed(0)
        weights = model.sample_weights() | guide()
        assert {weight.dtype for weight in half.sample_weights().values()} == {torch.float32}
        exact, rough = (own.run_with(weights, batch).logits for own in (model, half))
        assert rough.dtype == torch.bfloat16
        assert (exact.softmax(-1) - rough.float().softmax(-1)).abs().max() < 1e-2


def through_a_file(module):
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return safetensors.torch.load(safetensors.torch.save(state))


def check_fresh_ones(prior, guide):
    """Compares draws after a step with those of modules without a past: copies, and loaded from a file."""
    name, (model, guide, batch) = guide, make(prior, guide)
    optimizer = torch.optim.Adam(parameters(model, guide), lr=0.1)
    for _ in range(2):
        before = draw(model, guide, batch).detach()
        optimizer.zero_grad()
        PartsELBO().parts(model, guide, batch).loss().backward()
        optimizer.step()
    reached = draw(model, guide, batch)
    assert not torch.equal(before, reached)
    assert torch.equal(reached, draw(*copy.deepcopy((model, guide)), batch))
    loaded_model, loaded_guide, _ = make(prior, name, seed=5)
    for loaded, old in ((loaded_model, model), (loaded_guide, guide)):
        loaded.load_state_dict(through_a_file(old))
    assert torch.equal(reached, draw(loaded_model, loaded_guide, batch))


@pytest.mark.parametrize("guide", GUIDES)
def test_cache_that_outlives_a_step_would_be_caught(guide, monkeypatch):
    first, compute = {}, InducingMap.matrix.func

    def stale(self):
        matrix = compute(self)
        old = first.setdefault(self.locations.data_ptr(), matrix.detach())
        return matrix + (old - matrix).detach()  # the old value, with the gradient of the new one

    monkeypatch.setattr(InducingMap, "matrix", property(stale))
    with pytest.raises(AssertionError):
        check_fresh_ones("inducing", guide)
