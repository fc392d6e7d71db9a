"""Priors by role and by pattern of the names of modules, and the stacks that patterns cut."""

from fnmatch import fnmatchcase

import pytest
import torch

from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import BayesianLora, GaussianPrior, InducingPrior, LaplacePrior, PointPrior
from bayeslora_pyro.models import placement as placement_module
from bayeslora_pyro.models.placement import Placement

from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

FIRST, SECOND = (f"bert.encoder.layer.{layer}.attention.self.query" for layer in (0, 1))


def chosen(keys, role="A", module=FIRST):
    return Placement(keys).key_of(role, module)


class TestPlacement:
    @pytest.mark.parametrize(
        ("keys", "role", "key"),
        [
            (["AB"], "B", "AB"),
            (["A", "B"], "B", "B"),
            (["AB", "A"], "A", "A"),
            (["A", "B", "*.layer.[0-5].*"], "A", "*.layer.[0-5].*"),
            (["*", "A", "B"], "A", "A"),
            (["*", "AB", "*.B"], "B", "*.B"),
            (["*.query", "*.query.B", "AB"], "B", "*.query.B"),
            (["*.query", "*.query.B", "AB"], "A", "*.query"),
            (["*.layer.?.*", "*.layer.0.*"], "A", "*.layer.0.*"),
            ([FIRST, "*.layer.0.attention.self.*"], "A", FIRST),
        ],
    )
    def test_most_specific_key_counts_in_any_order(self, keys, role, key):
        assert chosen(keys, role) == chosen(keys[::-1], role) == key

    def test_fits_as_the_shell_does(self):
        for key in ("*.layer.[0-5].*", "*.layer.[!0].*", "*query", "bert.*", "QUERY", "*.[qv]*"):
            for module in (FIRST, SECOND):
                if fnmatchcase(module, key):
                    assert chosen([key], module=module) == key
                else:
                    with pytest.raises(ValueError, match="has none for A of"):
                        chosen([key], module=module)

    def test_names_the_factor_without_a_prior(self):
        with pytest.raises(ValueError, match=rf"has none for B of '{FIRST}': its keys are '\*.value', 'A'"):
            chosen(["A", "*.value"], "B")

    def test_two_keys_alike(self):
        with pytest.raises(ValueError, match=r"equally well, .* write out more of the name"):
            chosen(["*.query", "bert.*y"])

    def test_key_for_nothing(self):
        with pytest.raises(ValueError, match=r"an entry '\*\.key' that is for no factor"):
            BayesianLora(tiny_bert(), {"AB": "gaussian", "*.key": "laplace"})
        with pytest.raises(ValueError, match="an entry 'A' that is for no factor"):
            BayesianLora(tiny_bert(), {"A": "gaussian", "B": "gaussian", "*.A": "laplace"})

    def test_length_as_specificity_would_be_caught(self, monkeypatch):
        # Wildcards are no part of a name: "[qv][ua]*" has more characters than "*.q*", and says less.
        assert chosen(["[b][e][r]*", "bert*"]) == "bert*"
        monkeypatch.setattr(placement_module, "_specificity", len)
        assert chosen(["[b][e][r]*", "bert*"]) != "bert*"


def mixed():
    return {"*.layer.0.*": GaussianPrior(0.2), "*.layer.0.*.value.B": PointPrior(), "AB": InducingPrior(2, 3)}


def test_a_pattern_splits_the_stacks_that_it_cuts():
    model = BayesianLora(tiny_bert(), mixed(), num_data=20)
    found = {
        stack.name: (type(model.prior_of(stack)).__name__, [name[19:] for name in stack.adapters])
        for stack in model.stacks
    }
    tail = ".attention.self."
    assert found == {
        "A_2x16": ("GaussianPrior", [f"0{tail}query", f"0{tail}value"]),
        "A_2x16_2": ("InducingPrior", [f"1{tail}query", f"1{tail}value"]),
        "B_16x2": ("GaussianPrior", [f"0{tail}query"]),
        "B_16x2_2": ("PointPrior", [f"0{tail}value"]),
        "B_16x2_3": ("InducingPrior", [f"1{tail}query", f"1{tail}value"]),
    }
    assert model.priors_by_key().keys() == mixed().keys()


def test_split_stacks_leave_the_language_model_as_it_is():
    whole, split = (
        BayesianLora(tiny_bert(), "point"),
        BayesianLora(tiny_bert(), {"*.query": "point", "AB": "point"}),
    )
    assert len(split.stacks) == 2 * len(whole.stacks)
    logits = [model.run_with(model.sample_weights(), tiny_batch()).logits for model in (whole, split)]
    assert torch.equal(*logits)


def test_factors_in_another_order_would_be_caught():
    split = BayesianLora(tiny_bert(), {"*.query": "point", "AB": "point"})
    weights = split.sample_weights()
    weights["A_2x16"], weights["A_2x16_2"] = weights["A_2x16_2"], weights["A_2x16"]
    moved = split.run_with(weights, tiny_batch()).logits
    assert not torch.allclose(moved, split.run_with(split.sample_weights(), tiny_batch()).logits, atol=1e-3)


def test_guides_and_warm_starts_see_split_stacks():
    model = BayesianLora(tiny_bert(dtype=torch.float64), mixed(), num_data=20)
    guide = MeanFieldGuide(model, scale=1e-15, noise_scale=1e-15)
    guide.from_lora()
    drawn = model.sample_weights() | guide()
    for name, weights in model.lora_weights().items():
        torch.testing.assert_close(drawn[name], weights, rtol=0, atol=1e-10)


def test_order_of_the_keys_does_not_matter():
    states = [
        BayesianLora(tiny_bert(), {key: mixed()[key] for key in keys}).state_dict()
        for keys in (list(mixed()), list(mixed())[::-1])
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_shapes_split_without_a_pattern_as_before():
    model = BayesianLora(tiny_llama(), {"A": LaplacePrior(), "B": "gaussian"})
    assert [stack.name for stack in model.stacks] == ["A_2x16", "B_16x2", "B_8x2"]
    assert list(model.priors) == ["A", "B"]


def test_a_fresh_model_has_the_same_priors_in_the_same_places():
    model = BayesianLora(tiny_bert(), mixed())
    fresh = model.fresh(seed=3)
    assert fresh.stacks == model.stacks
    assert [type(fresh.prior_of(stack)) for stack in fresh.stacks] == [
        type(model.prior_of(stack)) for stack in model.stacks
    ]
    assert fresh.prior_of(fresh.stacks[0]).config() == {"scale": 0.2, "width_scaled": False}
