"""Methods against their published update rules, on tiny cases worked by hand."""

import pytest
import torch

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DeltaGuide
from bayeslora_pyro.methods import METHODS

from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def gradients(method, **changes):
    """The gradients of the loss in the factors, by stack name."""
    recipe = METHODS[method](tiny_bert(), "classification", 20)
    weight = changes.get("kl_weight", recipe.config.kl_weight_at(0))
    PartsELBO().parts(recipe.model, recipe.guide, tiny_batch()).loss(weight).backward()
    pairs = zip(recipe.model.stacks, recipe.guide.parameters(), strict=False)
    if method == "lora":
        return {
            stack.name: recipe.model.prior_of(stack).sample_weights(stack).grad
            for stack in recipe.model.stacks
        }
    assert isinstance(recipe.guide, DeltaGuide)
    return {stack.name: parameter.grad for stack, parameter in pairs}


def check_map(**changes):
    """A step of MAP is that of LoRA, and the factor itself over the variance of the prior, which is one."""
    weights = METHODS["map"](tiny_bert(), "classification", 20).model.lora_weights()
    ours, plain = gradients("map", **changes), gradients("lora")
    for name, weight in weights.items():
        torch.testing.assert_close(ours[name], plain[name] + weight)


def test_map_decays_weights_in_the_loss():
    check_map()


def test_a_tempered_prior_would_be_caught():
    with pytest.raises(AssertionError):
        check_map(kl_weight=0.1)


def test_matrix_normal_recipe_differs_in_its_guide_alone():
    ours, plain = (
        METHODS[name](tiny_bert(), "classification", 20) for name in ("bayesian-lora-mn", "bayesian-lora-mf")
    )
    assert type(ours.guide).__name__ == "MatrixNormalGuide"
    assert ours.config == plain.config
    assert type(ours.model.prior_of(ours.model.stacks[0])) is type(
        plain.model.prior_of(plain.model.stacks[0])
    )
