"""Fitting with flipout: the moments of its gradient, exactly; gradient checkpoints, resumed runs, errors."""

from itertools import count, product
from unittest import mock

import pytest
import torch

from bayeslora_pyro.adapters import FlipoutOperator, flipout
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DeltaGuide, DropoutGuide, MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora

from .exact import close, rand
from .noise import drawn_from, expectation
from .test_adapters import checkpoint_gradients
from .test_blob import linear
from .test_flipout import signs
from .test_resume import assert_equal_runs, interrupt_at
from .tiny import tiny_batch, tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def drawn(*values):
    """Has signs be these, one tensor for outputs and one for inputs."""
    return mock.patch.object(flipout, "_signs", side_effect=values)


def gradient(recipe, batch, *flipped):
    """The gradient of the log-likelihood in M, G and B, flattened; with signs for outputs and inputs, by flipout."""
    own = next(getattr(recipe.guide, stack.name) for stack in recipe.model.stacks if stack.role == "A")
    parameters = [own.loc, own.root_scale, *recipe.model.priors["B"].parameters()]
    with drawn(*flipped):
        per_item = recipe.guide.per_item() if flipped else None
        parts = PartsELBO().parts(recipe.model, recipe.guide, batch, 1, per_item)
    return torch.cat([g.flatten() for g in torch.autograd.grad(parts.log_likelihood["y"], parameters)])


def regression(items, features, seed=7):
    return {"input_ids": rand(items, features, seed=seed), "labels": rand(items, seed=seed + 1)}


def larger(recipe):
    """The same method with standard deviations that matter."""
    for name, parameter in recipe.guide.named_parameters():
        if name.endswith("root_scale"):
            with torch.no_grad():
                parameter.copy_(0.5 + rand(*parameter.shape, seed=9).abs())
    return recipe


def check_mean_gradient():
    """Whatever the signs, the mean over the noise is the plain one, exactly: the loss is quadratic."""
    recipe, batch = larger(linear("blob", features=3, rank=2)), regression(4, 3)
    wanted = expectation(lambda: gradient(recipe, batch))
    for seed in range(3):
        flipped = signs(1, 4, 2, seed=seed), signs(1, 4, 3, seed=seed + 10)
        close(expectation(lambda values=flipped: gradient(recipe, batch, *values)), wanted)


def moments(recipe, batch, patterns):
    """Mean and variance of the gradient over all patterns and, exactly, over two noises: by Gauss and Hermite."""
    points = {-(3**0.5): 1 / 6, 0.0: 2 / 3, 3**0.5: 1 / 6}
    mean, square = 0, 0
    for (x, p), (y, q) in product(points.items(), repeat=2):
        for pattern in patterns:
            with drawn_from(torch.tensor([x, y], dtype=torch.float64)):
                value = gradient(recipe, batch, *pattern)
            mean, square = mean + p * q * value / len(patterns), square + p * q * value**2 / len(patterns)
    return mean, square - mean**2


def check_variance(fault=lambda out_signs, in_signs: (out_signs, in_signs)):
    r"""Of two like items, with A of shape (1, 2), what is even in the noise alone stays in common.

    The gradient in M is affine in the noise, so its variance is halved. That in G_j has the term
    :math:`2 B^2 x_j^2 G_j^3 \epsilon_j^2`, which no sign changes, and whose variance both items have in common.
    """
    recipe = larger(linear("blob", features=2))
    batch = {name: value.expand(2, *value.shape[1:]) for name, value in regression(1, 2).items()}
    ones = torch.ones(1, 1, 1, dtype=torch.float64)
    patterns = [
        fault(torch.cat([ones, s * ones], 1), torch.cat([ones.expand(1, 1, 2), r.expand(1, 1, 2)], 1))
        for s in (1.0, -1.0)
        for r in torch.tensor(list(product((1.0, -1.0), repeat=2)), dtype=torch.float64)
    ]
    mean, plain = moments(recipe, batch, [()])
    flipped_mean, flipped = moments(recipe, batch, patterns)
    close(flipped_mean, mean)
    close(flipped[:2], plain[:2] / 2)
    (b,), scale, x = (
        recipe.model.priors["B"].parameters(),
        recipe.guide.A_1x2.root_scale,
        batch["input_ids"][0],
    )
    common = 2 * (2 * b.flatten() ** 2 * x**2 * scale.flatten() ** 3) ** 2
    close(flipped[2:4], (plain[2:4] + common.detach()) / 2)


VARIANCE_FAULTS = {
    "one pattern for all": lambda s, r: (s[:, :1].expand_as(s), r[:, :1].expand_as(r)),
    "signs for outputs only": lambda s, r: (s, torch.ones_like(r)),
}


class TestGradient:
    def test_its_mean_is_the_plain_one(self):
        check_mean_gradient()

    def test_planted_fault_a_centre_that_does_not_learn(self, monkeypatch):
        monkeypatch.setattr(
            flipout, "FlipoutOperator", lambda mean, *rest: FlipoutOperator(mean.detach(), *rest)
        )
        with pytest.raises(AssertionError):
            check_mean_gradient()

    def test_its_variance_loses_what_is_odd_in_the_noise(self):
        check_variance()

    @pytest.mark.parametrize("fault", VARIANCE_FAULTS)
    def test_planted_fault(self, fault):
        with pytest.raises(AssertionError):
            check_variance(VARIANCE_FAULTS[fault])


def checkpointed_gradients(checkpointed):
    peft_model = tiny_bert(dtype=torch.float64).train()
    if checkpointed:
        checkpoint_gradients(peft_model, {"use_reentrant": False})
    model = BayesianLora(peft_model, {"A": "gaussian", "B": "point"})
    guide = MeanFieldGuide(model, scale=0.5)
    torch.manual_seed(4)
    loss = PartsELBO().parts(model, guide, tiny_batch(), 1, guide.per_item()).loss()
    return torch.autograd.grad(loss, [*guide.parameters(), *model.parameters()])


class TestCheckpointing:
    def test_the_recomputation_sees_the_same_signs(self):
        for ours, wanted in zip(checkpointed_gradients(True), checkpointed_gradients(False), strict=True):
            close(ours, wanted)

    def test_planted_fault_other_signs_at_each_call(self, monkeypatch):
        call, seeds = FlipoutOperator.__call__, count()

        def redrawn(self, inputs):
            fresh = (signs(*old.shape, seed=next(seeds)) for old in (self._out_signs, self._in_signs))
            return call(FlipoutOperator(self.weight, self._deviation.weight, *fresh), inputs)

        monkeypatch.setattr(FlipoutOperator, "__call__", redrawn)
        wanted, seeds = checkpointed_gradients(False), count()
        assert not all(map(torch.allclose, checkpointed_gradients(True), wanted))


def fresh(prior="gaussian", family=MeanFieldGuide):
    model = BayesianLora(tiny_bert(), {"A": prior, "B": "point"}, num_data=20)
    return model, family(model)


class TestFit:
    @pytest.mark.parametrize("family", [MeanFieldGuide, DropoutGuide])
    def test_only_what_items_see_changes(self, family):
        rows = [
            fit(
                *fresh(family=family), [tiny_batch()], num_steps=1, progress=False, draw_per_item=drawn
            ).history[0]
            for drawn in (False, True)
        ]
        assert rows[0]["kl"] == rows[1]["kl"]
        assert rows[0]["expected_log_likelihood"] != rows[1]["expected_log_likelihood"]

    @pytest.mark.parametrize("family", [MeanFieldGuide, DropoutGuide])
    def test_a_resumed_run_gives_the_same_numbers(self, family, tmp_path, untouched_rng):
        options = {"num_steps": 5, "progress": False, "draw_per_item": True, "draws_per_batch": 2}
        batches, path = [tiny_batch(items=4, seed=seed) for seed in range(3)], tmp_path / "run"
        wanted = fit(*fresh(family=family), batches, **options)
        with pytest.raises(KeyboardInterrupt):
            fit(*fresh(family=family), batches, **options, checkpoint=path, callbacks=[interrupt_at(1)])
        assert_equal_runs(
            fit(*fresh(family=family), batches, **options, checkpoint=path, resume=True), wanted
        )

    @pytest.mark.parametrize(
        ("prior", "family"),
        [("gaussian", DeltaGuide), ("point", MeanFieldGuide), ("inducing", MeanFieldGuide)],
    )
    def test_no_way_to_is_said_before_the_first_step(self, prior, family):
        words = rf"draw_per_item=True needs .* {family.__name__} has none .* draw_per_item=False, or take"
        with pytest.raises(ValueError, match=words):
            fit(*fresh(prior, family), [tiny_batch()], num_steps=1, progress=False, draw_per_item=True)
