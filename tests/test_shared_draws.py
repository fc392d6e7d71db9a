"""Several draws share a batch: each item sees its own draw, and each draw's divergence counts once in all."""

from contextlib import nullcontext

import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from bayeslora_pyro import plates
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import GUIDES, FlowGuide, MeanFieldGuide
from bayeslora_pyro.models import LIKELIHOODS, BayesianLora, Choice, InducingPrior

from .small_priors import VARIANTS
from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

PRIORS = {
    "inducing": lambda: InducingPrior(2, 3, nugget=0.1),
    "gaussian": lambda: "gaussian",
    "one for each role": lambda: {"A": InducingPrior(1, 2, nugget=0.1), "B": "point"},
} | {name: VARIANTS[name] for name in ("global inducing, random scale", "ard, random precisions")}
ITEMS, DRAWS = 6, 3


def make(prior="inducing", guide="mean_field", likelihood="classification"):
    num_labels = 1 if likelihood == "regression" else 3
    peft_model = tiny_bert(hidden=4, num_layers=1, num_labels=num_labels, dtype=torch.float64)
    model = BayesianLora(peft_model, PRIORS[prior](), likelihood, num_data=20)
    return model, GUIDES[guide](model)


def traces(model, guide, batch, draws):
    torch.manual_seed(2)
    guide_trace = poutine.trace(guide).get_trace(batch, draws)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(batch, draws)
    return guide_trace, model_trace


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
class TestEveryPair:
    def test_an_item_sees_its_own_draw(self, prior, guide):
        model, family = make(prior, guide)
        batch = tiny_batch(items=ITEMS)
        _, trace = traces(model, family, batch, DRAWS)
        weights = {
            stack.name: trace.nodes[f"{stack.name}.W"]["value"]
            if f"{stack.name}.W" in trace.nodes
            else model.prior_of(stack).sample_weights(stack)
            for stack in model.stacks
        }
        for item in range(ITEMS):
            own = {name: w[item // (ITEMS // DRAWS)] if w.dim() == 4 else w for name, w in weights.items()}
            alone = model.likelihood.distribution(model.run_with(own, batch), batch)
            torch.testing.assert_close(trace.nodes["y"]["fn"].logits[item], alone.logits[item])

    def test_the_loss_is_that_of_pyro(self, prior, guide):
        model, family = make(prior, guide)
        batch, losses = tiny_batch(items=ITEMS), []
        for loss in (PartsELBO().differentiable_loss, TraceMeanField_ELBO().differentiable_loss):
            torch.manual_seed(2)
            losses.append(loss(model, family, batch, DRAWS))
        torch.testing.assert_close(losses[0], losses[1].detach())

    def test_each_divergence_is_the_average_of_the_draws(self, prior, guide):
        model, family = make(prior, guide)
        guide_trace, model_trace = traces(model, family, tiny_batch(items=ITEMS), DRAWS)
        torch.manual_seed(2)
        parts = PartsELBO().parts(model, family, tiny_batch(items=ITEMS), DRAWS)
        for name, actual in parts.kl.items():
            q, p = (trace.nodes[name] for trace in (guide_trace, model_trace))
            try:
                each = kl_divergence(q["fn"], p["fn"])
            except NotImplementedError:
                each = q["fn"].log_prob(q["value"]) - p["fn"].log_prob(q["value"])
            assert each.shape[0] == DRAWS
            torch.testing.assert_close(actual, each.sum(-1).mean(0))


def closed_form_kl(draws):
    model, guide = make()
    return PartsELBO().parts(model, guide, tiny_batch(items=ITEMS), draws).kl


def test_a_closed_form_does_not_depend_on_the_number_of_draws():
    one, shared = closed_form_kl(1), closed_form_kl(DRAWS)
    for name, value in one.items():
        torch.testing.assert_close(shared[name], value)


def test_planted_fault_a_divergence_per_draw(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plates.poutine, "scale", lambda scale: nullcontext())
    one, shared = closed_form_kl(1), closed_form_kl(DRAWS)
    assert all(not torch.allclose(shared[name], value, rtol=0.1) for name, value in one.items())


def gradient_variance(draws, likelihood="classification", labels=(0,) * ITEMS, repeats=60):
    """The summed variance, over the noise of the weights, of the gradient in the locations; all inputs are alike."""
    batch = {name: value[:1].expand(ITEMS, *value.shape[1:]) for name, value in tiny_batch(items=1).items()}
    batch["labels"] = torch.tensor(labels)
    model, guide = make(likelihood=likelihood)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.endswith("log_scale"):
                parameter.fill_(0.0)
    locations = [parameter for name, parameter in guide.named_parameters() if name.endswith("loc")]
    rows = []
    for repeat in range(repeats):
        torch.manual_seed(repeat)
        parts = PartsELBO().parts(model, guide, batch, draws)
        gradients = torch.autograd.grad(parts.log_likelihood["y"], locations)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows).var(0).sum()


def test_sharing_takes_variance_out_of_the_gradient_of_like_items():
    assert gradient_variance(ITEMS) / gradient_variance(1) == pytest.approx(1 / ITEMS, rel=0.5)


def test_sharing_may_add_variance_where_items_pull_apart():
    labels = (-9.0, 9.0) * (ITEMS // 2)
    shared, alone = (gradient_variance(draws, "regression", labels) for draws in (ITEMS, 1))
    assert shared > 2 * alone


def test_a_flow_draws_anew_for_each_part():
    model, _ = make()
    torch.manual_seed(0)
    weights = FlowGuide(model)(None, DRAWS)
    for stack in model.stacks:
        assert weights[stack.name].shape == (DRAWS, len(stack), *stack.shape)
        assert not torch.equal(weights[stack.name][0], weights[stack.name][1])


@pytest.mark.parametrize(
    ("items", "wanted", "most"), [(16, 4, 4), (6, 4, 3), (7, 4, 1), (2, 4, 2), (4, 1, 1)]
)
def test_no_more_draws_than_share_evenly(items, wanted, most):
    assert LIKELIHOODS["classification"]().most_draws(tiny_batch(items=items), wanted) == most


def test_options_of_a_question_stay_together():
    batch = tiny_batch("options", items=4)
    assert Choice().most_draws(batch, 4) == 4
    uneven = batch | {"item": torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3])}
    assert (
        Choice().most_draws(uneven, 4) == 2
    )  # rows 0-5 are questions 0 and 1; thirds and quarters cut one in two


def test_choices_are_shared_by_whole_questions():
    batch = tiny_batch("options", items=4)
    model = BayesianLora(tiny_llama(dtype=torch.float64), "inducing", Choice())
    weights = MeanFieldGuide(model)(batch, 2)
    shared = model.likelihood.distribution(model.run_with(weights, batch, shared=True), batch)
    for item in range(4):
        own = {name: w[item // 2] for name, w in weights.items()}
        alone = model.likelihood.distribution(model.run_with(own, batch), batch)
        torch.testing.assert_close(shared.logits[item], alone.logits[item])


def test_draws_that_do_not_fit_are_refused():
    model, guide = make()
    with pytest.raises(ValueError, match="num_draws=4 draws cannot share 6 rows evenly"):
        PartsELBO().parts(model, guide, tiny_batch(items=ITEMS), 4)
