"""What went wrong in released implementations of Laplace-LoRA, and must not here; the rest is in test_laplace.py.

There: the scale of the curvature and its dependence on batches, sums over tokens on both sides, averages of logits. In
test_evidence.py: the signs and the norm of the evidence.
"""

from typing import Any

import pytest
import torch

from bayeslora_pyro import BayesianLora, laplace_posterior

from .laplace_cases import check_alike, classifier, data, facts, moments
from .tiny import tiny_batch, tiny_bert


def test_a_model_in_train_mode_is_measured_without_dropout_and_left_in_it() -> None:
    noisy = BayesianLora(tiny_bert(dtype=torch.float64, dropout=0.5), "point", num_data=15)
    noisy.adapter.peft_model.train()
    found = laplace_posterior(noisy, data())
    check_alike(found, laplace_posterior(classifier(), data()))
    assert all(part.training for part in noisy.adapter.peft_model.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_half_precision_will_do(dtype: torch.dtype) -> None:
    half = BayesianLora(tiny_bert(dtype=dtype), "point", num_data=15)
    found = laplace_posterior(half, data(), precision=0.3)
    wanted = laplace_posterior(BayesianLora(tiny_bert(), "point", num_data=15), data(), precision=0.3)
    assert facts(found)["log_evidence"] == pytest.approx(facts(wanted)["log_evidence"], rel=0.05)
    for stack in found.stacks:
        assert found.guide.get_posterior(stack).variance.dtype == torch.float32
    assert found.predict([tiny_batch(seed=7)], 8).probs.isfinite().all()


@pytest.mark.usefixtures("untouched_rng")
def test_labels_are_drawn_from_the_seed() -> None:
    first, again, other = (
        facts(laplace_posterior(classifier(), data(), fisher=2, seed=seed))["log_evidence"]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_one_item_and_one_class_are_no_special_case() -> None:
    single = [{name: value[:1] for name, value in tiny_batch().items()}]
    assert facts(laplace_posterior(classifier(), single))["num_items"] == 1
    one_output = BayesianLora(tiny_bert(num_labels=1, dtype=torch.float64), "point", "regression", 5)
    found = laplace_posterior(one_output, [tiny_batch("regression")])
    assert moments(found, tiny_batch("regression"))[1].shape == (5, 1, 1)


def test_a_rank_as_large_as_a_side_is_not_ambiguous() -> None:
    model = BayesianLora(tiny_bert(rank=16, dtype=torch.float64), "point", num_data=15)
    found = laplace_posterior(model, data(), precision=0.3)
    low = laplace_posterior(model, data(), precision=0.3, max_dense=0, rank=16, sketch=16)
    torch.testing.assert_close(moments(found, tiny_batch(seed=7)), moments(low, tiny_batch(seed=7)))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_nothing_of_the_model_is_left_changed(kind: str) -> None:
    likelihood: Any = kind
    labels = 3 if kind == "classification" else 1
    model = BayesianLora(tiny_bert(num_labels=labels), "point", likelihood, num_data=15)
    peft_model = model.adapter.peft_model
    before = {name: value.clone() for name, value in peft_model.state_dict().items()}
    grads = {name: p.requires_grad for name, p in peft_model.named_parameters()}
    laplace_posterior(model, data(kind=kind)).predict([tiny_batch(kind, seed=7)], 4)
    after = peft_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert grads == {name: p.requires_grad for name, p in peft_model.named_parameters()}
    assert all(p.grad is None for p in peft_model.parameters())
