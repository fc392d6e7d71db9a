"""Adapters of half-precision bases and under gradient checkpointing: the same outputs and gradients."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from bayeslora_pyro.adapters import Adapter
from bayeslora_pyro.adapters.slots import Slot

from .test_adapters import MODELS, checkpoint_gradients, draws_around
from .tiny import Batch, tiny_batch, tiny_bert, tiny_llama

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@pytest.mark.parametrize("dtype", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("cast", [True, False], ids=["float32-adapter", "half-adapter"])
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama], ids=["bert", "llama"])
def test_half_precision_base_takes_float32_factors(
    make: Callable[..., PeftModel], cast: bool, dtype: torch.dtype
) -> None:
    batch = tiny_batch("classification" if make is tiny_bert else "next_token")
    peft_model = make(dtype=dtype)
    if cast:
        for name, parameter in peft_model.named_parameters():
            parameter.data = parameter.data.float() if ".lora_" in name else parameter.data
    adapter, exact = Adapter(peft_model), Adapter(make())
    weights, head = draws_around(exact), exact.head_parameters()
    assert all(value.dtype == torch.float32 for value in adapter.lora_weights().values())
    assert all(value.dtype == torch.float32 for value in adapter.head_parameters().values())
    for weight in (*weights.values(), *head.values()):
        weight.requires_grad_()
    ours = adapter.run_with(weights, batch, head).logits.float()
    wanted = exact.run_with(weights, batch, head).logits
    assert (ours.softmax(-1) - wanted.softmax(-1)).abs().max() < 1e-2
    learned = [*weights.values(), *head.values()]
    for gradient, exact_gradient in zip(
        torch.autograd.grad(ours.square().sum(), learned),
        torch.autograd.grad(wanted.square().sum(), learned),
        strict=True,
    ):
        assert gradient.dtype == torch.float32
        assert (gradient - exact_gradient).norm() / exact_gradient.norm() < 5e-2


def test_float64_stays_float64() -> None:
    assert {w.dtype for w in Adapter(tiny_bert(dtype=torch.float64)).lora_weights().values()} == {
        torch.float64
    }


CHECKPOINTING = {
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
    "default": None,
}


def gradients(adapter: Adapter, batch: Batch, *, within_another: bool = False) -> list[Tensor]:
    """The gradients of all that is learned, by a backward pass after the factors were taken out again."""
    weights, head = draws_around(adapter), adapter.head_parameters()
    learned = [value.requires_grad_() for value in (*weights.values(), *head.values())]
    loss = adapter.run_with(weights, batch, head).logits.square().sum()
    if not within_another:
        return list(torch.autograd.grad(loss, learned))
    others = draws_around(adapter, seed=2)
    with adapter.bind(others):
        found = list(torch.autograd.grad(loss, learned))
        slots = [module for module in adapter.peft_model.modules() if isinstance(module, Slot)]
        own = {weight.data_ptr() for stack in others.values() for weight in stack}
        assert {slot.weight.data_ptr() for slot in slots} == own
    return found


def checkpointing_functions(peft_model: PeftModel) -> list[Any]:
    return [
        vars(m)[name] for m in peft_model.modules() if (name := "_gradient_checkpointing_func") in vars(m)
    ]


@pytest.mark.parametrize("arguments", CHECKPOINTING.values(), ids=CHECKPOINTING)
@pytest.mark.parametrize("within_another", [False, True], ids=["alone", "within-another"])
@pytest.mark.parametrize("case", ["bert", "grouped-queries", "shapes"])
def test_gradient_checkpointing_changes_no_gradient(case: str, within_another: bool, arguments: Any) -> None:
    make, kind, _ = MODELS[case]
    peft_model, batch = make().train(), tiny_batch(kind)  # layers checkpoint in train mode only
    adapter = Adapter(peft_model)
    wanted = gradients(adapter, batch)
    checkpoint_gradients(peft_model, arguments)
    before = checkpointing_functions(peft_model)
    assert before
    for ours, expected in zip(gradients(adapter, batch, within_another=within_another), wanted, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    assert checkpointing_functions(peft_model) == before


def test_planted_fault_factors_forgotten_by_the_recomputation(monkeypatch: pytest.MonkeyPatch) -> None:
    peft_model, batch = tiny_bert().train(), tiny_batch()
    adapter = Adapter(peft_model)
    wanted = gradients(adapter, batch)
    checkpoint_gradients(peft_model, {"use_reentrant": False})
    monkeypatch.setattr("bayeslora_pyro.adapters.adapter.checkpoints_within", lambda *_: nullcontext())
    found = gradients(adapter, batch)
    assert any(not torch.allclose(ours, right, atol=1e-4) for ours, right in zip(found, wanted, strict=True))
