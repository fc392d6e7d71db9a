"""Inference in the space of ranks: its update worked by hand, its prior in a dense form, and where it starts."""

import math

import pytest
import torch
from torch.distributions import kl_divergence

from bayeslora_pyro import elbo
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DeltaGuide, MeanFieldGuide
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.models import RankSpacePrior
from bayeslora_pyro.posterior import Posterior

from .exact import close, rand
from .noise import affine, drawn_from
from .small_priors import small_model
from .test_blob import ITEM, linear, set_to
from .tiny import tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def check_update():
    """Mean 0.6 and deviation 0.2 of s, A_0 = 0.5, B = 1; the noise is 1; x = 2, y = 1.

    s = 0.6 + 0.2 = 0.8, and the output B s A_0 x = 0.8, its error -0.2.

    d NLL / ds = -0.2 B A_0 x = -0.2            d NLL / d mean = -0.2
                                                d NLL / d log deviation = -0.2 * 0.2 * 1 = -0.04
    d NLL / dA_0 = -0.2 B s x = -0.32           d NLL / dB = -0.2 s A_0 x = -0.16
    KL(q | p) = -log 0.2 + (0.2^2 + 0.6^2) / 2 - 1/2 = log 5 - 0.3
    d KL / d mean = 0.6                         d KL / d log deviation = 0.2^2 - 1 = -0.96
    """
    recipe = linear("rank-space")
    own, prior = recipe.guide.A_1x1, recipe.model.priors["A"]
    parameters = {
        "mean": set_to(own.loc, 0.6),
        "log deviation": set_to(own.log_scale, math.log(0.2)),
        "A_0": set_to(prior.directions_A_1x1, 0.5),
        "B": set_to(recipe.model.priors["B"].weights_B_1x1, 1.0),
    }
    with drawn_from(torch.tensor([1.0])):
        parts = PartsELBO().parts(recipe.model, recipe.guide, ITEM)
        parts.loss().backward()
    assert {name: value.item() for name, value in parts.kl.items()} == pytest.approx(
        {"A_1x1.s": math.log(5) - 0.3}
    )
    wanted = {"mean": -0.2 + 0.6, "log deviation": -0.04 - 0.96, "A_0": -0.32, "B": -0.16}
    found = {name: parameter.grad.item() for name, parameter in parameters.items()}
    assert found == pytest.approx(wanted, rel=1e-12)


class TestUpdate:
    def test_divergence_and_gradients_worked_by_hand(self):
        check_update()

    def test_divergence_of_the_released_code_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(elbo, "kl_divergence", lambda q, p: kl_divergence(p, q))
        with pytest.raises(AssertionError):
            check_update()

    def test_two_variational_numbers_for_each_rank_of_an_adapter(self):
        recipe = METHODS["rank-space"](tiny_bert(rank=3), "classification", 20)
        assert sum(parameter.numel() for parameter in recipe.guide.parameters()) == 4 * 3 * 2


def check_marginal():
    """Rows of A are independent, each along its direction; so are the columns of B."""
    model = small_model(RankSpacePrior(0.7))
    with torch.no_grad():
        for index, parameter in enumerate(model.priors.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=index))
    for stack in model.stacks:
        centre, root = affine(lambda name=stack.name: model.sample_weights()[name])
        directions = model.prior_of(stack).directions(stack).detach()
        covariances = []
        for own in directions:  # entries are row after row
            if stack.role == "A":
                basis = [torch.kron(unit, row) for unit, row in zip(torch.eye(2).double(), own, strict=True)]
            else:
                basis = [
                    torch.kron(col, unit) for unit, col in zip(torch.eye(2).double(), own.T, strict=True)
                ]
            covariances.append(0.49 * sum(torch.outer(vector, vector) for vector in basis))
        close(centre, torch.zeros_like(centre))
        close(root @ root.T, torch.block_diag(*covariances))


class TestPrior:
    def test_marginal_of_the_weights_is_the_dense_one(self):
        check_marginal()

    def test_one_scale_for_all_ranks_would_be_caught(self, monkeypatch):
        monkeypatch.setattr(
            RankSpacePrior,
            "lift",
            lambda self, stack, latent: self.directions(stack) * latent.mean(-1, keepdim=True),
        )
        with pytest.raises(AssertionError):
            check_marginal()

    def test_starts_at_the_lora_with_unit_directions(self):
        model = small_model("rank_space")
        drawn = DeltaGuide(model)()
        for stack in model.stacks:
            close(drawn[stack.name], model.lora_weights()[stack.name])
            lengths = model.prior_of(stack).directions(stack).norm(dim=-1 if stack.role == "A" else -2)
            close(lengths, torch.ones_like(lengths))

    def test_zeros_stay_zeros_that_can_be_learned(self):
        model = small_model("rank_space", random_b=False)
        b = next(stack for stack in model.stacks if stack.role == "B")
        drawn = DeltaGuide(model)()[b.name]
        assert not drawn.any()
        drawn.sum().backward()
        assert model.prior_of(b).directions(b).grad.all()

    def test_mean_adapter_is_the_lift_of_the_mean(self):
        model = small_model({"A": "rank_space", "B": "point"})
        guide = MeanFieldGuide(model, scale=0.3)
        a = model.stacks[0]
        centre, _ = affine(lambda: guide()[a.name])
        close(Posterior(model, guide).mean_adapter()[a.name].flatten(), centre)

    @pytest.mark.parametrize("scale", [0.0, -1.0])
    def test_scale_is_positive(self, scale):
        with pytest.raises(ValueError, match=f"scale should be positive, and is {scale}"):
            RankSpacePrior(scale)
