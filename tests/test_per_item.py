"""Draws of their own for the items of a batch: every item sees one function, whichever the rule and the likelihood."""

import itertools

import pytest
import torch

from bayeslora_pyro.adapters import Adapter, Dropout, DropoutOperator, make_operators
from bayeslora_pyro.adapters.dropout import _masks
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import DropoutGuide, MeanFieldGuide
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.models import BayesianLora

from .exact import close, rand
from .linear import linear_data, linear_lora
from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

BATCHES = {
    "classes": (lambda: tiny_bert(dtype=torch.float64), "classification", tiny_batch(items=4)),
    "options": (lambda: tiny_llama(dtype=torch.float64), "choice", tiny_batch("options", items=4)),
    "texts": (lambda: tiny_llama(dtype=torch.float64), "next_token", tiny_batch("next_token", items=4)),
}
FAMILIES = {
    "flipout": lambda model: MeanFieldGuide(model, scale=0.5),
    "dropout": lambda model: DropoutGuide(model, rate=0.5),
}


def dense(operator, rows):
    """The weight that each row sees, read off what the operator does to unit vectors. Shape `(rows, out, in)`."""
    size = operator.weight.shape[-1]
    return operator(torch.eye(size, dtype=torch.float64).expand(rows, size, size)).mT


def check_items(family, kind, draws=1, item_of_row=None):
    """All rows of an item go through one function, that of the weights that its own rows see."""
    make, likelihood, batch = BATCHES[kind]
    model = BayesianLora(make(), {"A": "gaussian", "B": "point"}, likelihood)
    guide, right = FAMILIES[family](model), model.likelihood.item_of_row(batch)
    weights = model.sample_weights() | guide(batch, draws)
    per_item = guide.per_item()
    operators = make_operators(weights, per_item, right if item_of_row is None else item_of_row)
    found = model.run_with(weights, batch, shared=draws > 1, operators=operators).logits
    seen = {name: torch.stack([dense(each, len(right)) for each in operators[name]], 1) for name in per_item}
    for item in range(4):
        rows = right == item
        own = weights | {name: values[rows][0] for name, values in seen.items()}
        torch.testing.assert_close(found[rows], model.run_with(own, batch).logits[rows])
    (values,) = seen.values()
    assert len({tuple(row) for row in values[:, 0].flatten(1).tolist()}) == 4


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_item_sees_one_function(family, kind, draws):
    check_items(family, kind, draws)


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_fault_a_draw_for_each_option(family):
    with pytest.raises(AssertionError):
        check_items(family, "options", item_of_row=torch.arange(12))


@pytest.mark.parametrize("between", [(), (5,), (2, 3)], ids=["items", "tokens", "more"])
def test_dropout_is_a_dense_weight_with_columns_of_zeros_for_each_item(between):
    weight, inputs = rand(4, 3), rand(6, *between, 3, seed=1)
    masks = torch.tensor(list(itertools.product((0.0, 1 / 0.7), repeat=3))[:6], dtype=torch.float64)
    outputs = DropoutOperator(weight, masks)(inputs)
    for item in range(6):
        close(outputs[item], inputs[item] @ (weight * masks[item]).T)


def test_dropout_needs_a_row_for_each_item():
    with pytest.raises(
        ValueError, match=r"each of the 6 rows .* shape \(1, 3\): fit with draw_per_item=False"
    ):
        DropoutOperator(rand(4, 3), torch.ones(6, 3).double())(rand(1, 3))


def test_masks_keep_their_share_and_differ_between_items_and_factors():
    torch.manual_seed(0)
    masks = _masks((3, 200, 100), 0.3, rand(1))
    assert masks.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert masks.mean().item() == pytest.approx(1, abs=0.02)  # unbiased
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0, 0], masks[0, 1])


def expected_gradient(masks_of_items):
    """The mean gradient of the log-likelihood of two items over all masks of both, for one factor A of shape (1, 2)."""
    recipe = METHODS["mc-dropout"](linear_lora(features=2, rank=1), "regression", 2, rate=0.5)
    batch = linear_data(items=2, features=2)
    guide, total = recipe.guide, 0.0
    name = next(stack.name for stack in recipe.model.stacks if stack.role == "A")
    for masks in masks_of_items:
        rule = _Fixed(guide.per_item()[name], masks)
        parts = PartsELBO().parts(recipe.model, guide, batch, 1, {name: rule})
        (gradient,) = torch.autograd.grad(parts.log_likelihood["y"], [getattr(guide, name).loc])
        total = total + gradient / len(masks_of_items)
    return total


class _Fixed(Dropout):
    """Dropout with given masks, one for each item."""

    def __init__(self, rule, masks):
        super().__init__(rule.weight, rule.rate)
        object.__setattr__(self, "masks", masks)

    def operators(self, values, item_of_row):
        return [DropoutOperator(self.weight[0], self.masks[item_of_row])]


PATTERNS = torch.tensor(list(itertools.product((0.0, 2.0), repeat=2)), dtype=torch.float64)


def check_expected_gradient(pairs):
    shared = [pattern.expand(2, 2) for pattern in PATTERNS]
    close(expected_gradient(pairs), expected_gradient(shared))


def test_the_expected_gradient_is_that_of_one_draw_for_all_items():
    check_expected_gradient([torch.stack(pair) for pair in itertools.product(PATTERNS, repeat=2)])


def test_planted_fault_masks_that_are_not_divided_by_the_share_that_is_kept():
    with pytest.raises(AssertionError):
        check_expected_gradient([torch.stack(pair) / 2 for pair in itertools.product(PATTERNS, repeat=2)])


def test_factors_without_a_rule_are_bound_as_they_are():
    adapter = Adapter(tiny_bert(dtype=torch.float64))
    weights, batch = adapter.lora_weights(), tiny_batch()
    name = adapter.stacks[0].name
    rows = torch.arange(len(batch["input_ids"]))
    nothing_dropped = {name: Dropout(weights[name], 0.0)}
    outputs = [
        adapter.run_with(weights, batch, operators=make_operators(weights, rules, rows)).logits
        for rules in (None, {}, nothing_dropped)
    ]
    close(outputs[1], outputs[0])
    close(outputs[2], outputs[0])
