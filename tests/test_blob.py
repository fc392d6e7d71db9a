"""BLoB against its published update rules, on a case worked by hand, and against its theorem in a dense form."""

import math
from types import SimpleNamespace
from unittest import mock

import pyro
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from bayeslora_pyro import elbo
from bayeslora_pyro.adapters import flipout
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import SquaredScaleGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.methods.blob import cycle_length
from bayeslora_pyro.models import BayesianLora, Regression
from bayeslora_pyro.posterior import Posterior

from .exact import rand
from .noise import affine, drawn_from
from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


class LinearMap(nn.Module):
    """A language model that is one linear map."""

    def __init__(self, features, outputs):
        super().__init__()
        self.layer = nn.Linear(features, outputs, bias=False)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.layer(input_ids))


def linear(method, features=1, outputs=1, rank=1):
    """A method on a linear map that is zero, whose noise has standard deviation one, with scaling one."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft_model = get_peft_model(LinearMap(features, outputs), config).double()
    nn.init.zeros_(peft_model.base_model.model.layer.base_layer.weight)
    return METHODS[method](peft_model, Regression(scale=1.0), 1)


def set_to(parameter, value):
    with torch.no_grad():
        parameter.fill_(value)
    return parameter


ITEM = {"input_ids": torch.tensor([[2.0]]).double(), "labels": torch.tensor([1.0]).double()}


def at_the_point():
    """M = 0.5, G = 0.4, B = 0.5; so the standard deviation is G^2 = 0.16."""
    recipe = linear("blob")
    parameters = {
        "M": set_to(recipe.guide.A_1x1.loc, 0.5),
        "G": set_to(recipe.guide.A_1x1.root_scale, 0.4),
        "B": set_to(recipe.model.priors["B"].weights_B_1x1, 0.5),
    }
    return recipe, parameters


def check_gradients(sign=1.0):
    """The noise is 1.5 and the weight of the divergence 0.1; x = 2, y = 1.

    A = M + G^2 noise = 0.5 + 0.16 * 1.5 = 0.74, and the output B A x = 0.74, its error -0.26.

    d NLL / dA = -0.26 B x = -0.26      d NLL / dM = -0.26
                                        d NLL / dG = -0.26 * 2 G noise = -0.26 * 1.2 = -0.312
    d NLL / dB = -0.26 A x = -0.3848

    Flipped, A = M - G^2 noise = 0.26, the output is 0.26, and its error -0.74.

    d NLL / dA = -0.74 B x = -0.74      d NLL / dM = -0.74
                                        d NLL / dG = -0.74 * -2 G noise = 0.74 * 1.2 = 0.888
    d NLL / dB = -0.74 A x = -0.3848
    d KL / dM = M / 0.2^2 = 12.5        d KL / dG = 2 G^3 / 0.2^2 - 2 / G = 3.2 - 5 = -1.8
    """
    recipe, parameters = at_the_point()
    with drawn_from(torch.tensor([1.5])), flipped(sign):
        PartsELBO().parts(recipe.model, recipe.guide, ITEM, 1, recipe.guide.per_item()).loss(0.1).backward()
    likelihood = {1.0: {"M": -0.26, "G": -0.312}, -1.0: {"M": -0.74, "G": 0.888}}[sign]
    wanted = {"M": likelihood["M"] + 0.1 * 12.5, "G": likelihood["G"] - 0.1 * 1.8, "B": -0.3848}
    found = {name: parameter.grad.item() for name, parameter in parameters.items()}
    assert found == pytest.approx(wanted, rel=1e-12)


def flipped(sign):
    """Has flipout give the one deviation this sign."""
    signs = [torch.ones(1, 1, 1).double(), torch.full((1, 1, 1), sign).double()]
    return mock.patch.object(flipout, "_signs", side_effect=signs)


class TestUpdate:
    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_gradients_worked_by_hand(self, sign):
        check_gradients(sign)

    def test_divergence_the_wrong_way_round_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(elbo, "kl_divergence", lambda q, p: kl_divergence(p, q))
        with pytest.raises(AssertionError):
            check_gradients()

    def test_variance_for_deviation_would_be_caught(self, monkeypatch):
        base = SquaredScaleGuide.get_base_dist
        monkeypatch.setattr(
            SquaredScaleGuide,
            "get_base_dist",
            lambda self, stack: pyro.distributions.Normal(
                base(self, stack).mean, base(self, stack).stddev.sqrt()
            ).to_event(2),
        )
        with pytest.raises(AssertionError):
            check_gradients()

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_first_step_goes_against_the_gradients(self, sign):
        # The first step of AdamW is the step size, against the sign: with the weight 0.1, M falls, G and B grow; under
        # the other sign, G falls.
        recipe, parameters = at_the_point()
        settings = {"num_steps": 1, "kl_cycle": 0, "kl_weight": 0.1, "progress": False}
        with drawn_from(torch.tensor([1.5])), flipped(sign):
            fit(recipe.model, recipe.guide, [ITEM], recipe.config, **settings)
        found = {name: parameter.item() for name, parameter in parameters.items()}
        assert found == pytest.approx({"M": 0.5 - 5e-4, "G": 0.4 + sign * 5e-4, "B": 0.5 + 5e-4}, rel=1e-6)


def degenerate_kl(q, p, directions):
    """The divergence of two normals within the space that the columns of `directions` span."""
    basis = torch.linalg.qr(directions)[0]
    within = [MultivariateNormal(basis.T @ mean, basis.T @ covariance @ basis) for mean, covariance in (q, p)]
    return kl_divergence(*within)


def check_full_weight(prior_root=lambda b: b):
    """Theorem 3.2: between full weights, the divergence is that of A, if the prior has the covariance of B."""
    recipe = linear("blob", features=3, outputs=4, rank=2)
    own, b = recipe.guide.A_2x3, recipe.model.lora_weights()["B_4x2"][0]
    with torch.no_grad():
        own.root_scale.copy_(0.3 + 0.1 * rand(1, 2, 3, seed=1).abs())
    frozen = rand(4, 3, seed=2)
    mean, root = affine(lambda: frozen + b @ recipe.guide()["A_2x3"][0])

    lift = torch.kron(b, torch.eye(3).double())  # rows of W one after the other
    covariance = lift @ own.root_scale[0].flatten().pow(4).diag() @ lift.T
    torch.testing.assert_close(mean, (frozen + b @ own.loc[0]).flatten())
    torch.testing.assert_close(root @ root.T, covariance, rtol=0, atol=1e-14)

    prior_lift = torch.kron(prior_root(b).contiguous(), torch.eye(3).double())
    prior = frozen.flatten(), 0.2**2 * prior_lift @ prior_lift.T
    stack = recipe.model.stacks[0]
    kl = kl_divergence(
        recipe.guide.get_base_dist(stack), recipe.model.prior_of(stack).latent_prior(stack).expand((1,))
    )
    torch.testing.assert_close(degenerate_kl((mean, covariance), prior, lift), kl[0])


class TestFullWeight:
    def test_divergence_is_that_of_the_factor(self):
        check_full_weight()

    def test_any_other_root_of_the_covariance_does(self):
        check_full_weight(lambda b: b @ torch.linalg.qr(rand(2, 2, seed=4))[0])

    def test_prior_without_the_scale_of_b_would_be_caught(self):
        with pytest.raises(AssertionError):
            check_full_weight(lambda b: torch.linalg.qr(b)[0])


class TestCycle:
    def test_weights_double_and_sum_to_those_of_a_constant_weight(self):
        config = FitConfig(kl_weight=0.3, kl_warmup=0.0, kl_cycle=4)
        weights = [config.kl_weight_at(step) for step in range(8)]
        assert weights[:4] == pytest.approx([0.3 * 4 * share / 15 for share in (1, 2, 4, 8)])
        assert weights[4:] == weights[:4]
        assert sum(weights) == pytest.approx(8 * 0.3)

    @pytest.mark.parametrize("length", [1, 2, 7, 40])
    def test_shares_are_the_released_ones(self, length):
        # The release divides by 2^(M + 1) - 1, so that its weights fall short of one, by less the longer the cycle.
        config = FitConfig(kl_weight=1.0, kl_warmup=0.0, kl_cycle=length)
        for i in range(1, length + 1):
            released = 2**i / (2 ** (length + 1) - 1)
            assert config.kl_weight_at(i - 1) / length == pytest.approx(
                released * (1 + 1 / (2 ** (length + 1) - 2))
            )

    def test_long_ones_have_numbers(self):
        config = FitConfig(kl_cycle=5000, kl_warmup=0.0, kl_weight=1.0)
        assert config.kl_weight_at(0) == 0.0
        assert config.kl_weight_at(4999) == 2500.0

    def test_released_length(self):
        assert cycle_length(640, 4) == int(100 * 640 ** (math.pi / 8) / 4) == 316
        assert cycle_length(1, 1000) == 1


def test_standard_deviations_start_between_half_and_all_of_the_largest():
    model = BayesianLora(tiny_bert(hidden=32), "gaussian")
    deviations = [
        SquaredScaleGuide(model, scale=0.09, seed=3).get_base_dist(stack).stddev for stack in model.stacks
    ]
    whole = torch.cat([deviation.flatten() for deviation in deviations])
    assert 0.045 <= whole.min() < 0.048
    assert 0.087 < whole.max() <= 0.09
    # The root is uniform, so its mean is that of the interval.
    assert whole.sqrt().mean().item() == pytest.approx(0.3 * (1 + 0.5**0.5) / 2, rel=0.01)


def test_recipe_is_the_published_one():
    recipe = METHODS["blob"](tiny_bert(), "classification", 400)
    a, b = recipe.model.stacks
    assert recipe.model.prior_of(a).config() == {"scale": 0.2, "width_scaled": False}
    assert recipe.model.prior_of(b).latent is None
    assert recipe.config.kl_cycle == 65
    assert (recipe.config.draw_per_item, recipe.config.draws_per_batch) == (True, 1)
    deviation = recipe.guide.get_base_dist(a).stddev
    assert 0.05**2 / 2 <= deviation.min() <= deviation.max() <= 0.05**2 * (1 + 1e-6)


@pytest.mark.parametrize("method", ["blob", "rank-space"])
def test_fits_and_loads_exactly(method, tmp_path):
    recipe = METHODS[method](tiny_bert(), "classification", 5)
    posterior = recipe.fit([tiny_batch()], num_steps=3, progress=False).posterior
    posterior.save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior", tiny_bert().unload())
    ours, theirs = (each.predict([tiny_batch()], 3, seed=1).log_probs for each in (posterior, loaded))
    assert torch.equal(ours, theirs)
    for name, mean in posterior.mean_adapter().items():
        assert torch.equal(loaded.mean_adapter()[name], mean)
