"""The steps of a fit: whose gradients they follow, how long they are, and what runs in them."""

from typing import Any

import pytest
import torch
from torch import nn

from bayeslora_pyro.guides import GUIDES, MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import PRIORS, BayesianLora

from .pairs import NUM_DATA, certain, data, learned, pair
from .test_adapters import checkpoint_gradients
from .tiny import tiny_batch, tiny_bert, tiny_llama


def test_parameter_groups_have_their_own_step_sizes() -> None:
    model, guide = pair()
    before = {name: p.detach().clone() for name, p in learned(model, guide).items()}
    fit(model, guide, data(), num_steps=1, learning_rate=1e-2, head_learning_rate=1e-4, progress=False)
    for name, parameter in learned(model, guide).items():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-4 if "head" in name else 1e-2, rel=0.05)  # Adam's first step


def test_flows_have_a_step_size_of_their_own() -> None:
    model, guide = pair(guide="flow")
    flows = {name: p for name, p in guide.named_parameters() if name.startswith("flow_")}
    before = {name: p.detach().clone() for name, p in flows.items()}
    fit(model, guide, data(), num_steps=1, flow_learning_rate=1e-3, learning_rate=1e-2, progress=False)
    moved = max((p.detach() - before[name]).abs().max().item() for name, p in flows.items())
    assert moved == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.25), ("cosine", 0.14645)])
def test_schedule_shrinks_the_step(schedule: str, last: float) -> None:
    model, guide = certain()
    sizes: list[float] = []
    head = next(iter(model.head.parameters()))
    values = [head.detach().clone()]

    def note(row: dict[str, float]) -> None:
        sizes.append((head.detach() - values[-1]).norm().item())
        values.append(head.detach().clone())

    options = {"schedule": schedule, "num_steps": 4, "learning_rate": 1e-30, "head_learning_rate": 1e-6}
    fit(model, guide, [tiny_batch(items=NUM_DATA)], callbacks=[note], progress=False, **options)
    assert sizes[3] / sizes[0] == pytest.approx(last, rel=0.1)


def test_clipping_reports_the_norm_it_clipped() -> None:
    free, clipped = pair(), pair()
    norm = fit(*free, data(), num_steps=1, progress=False).history[0]["grad_norm"]
    row = fit(*clipped, data(), num_steps=1, max_grad_norm=norm / 10, progress=False).history[0]
    assert row["grad_norm"] == pytest.approx(norm)

    def size(model: nn.Module, guide: nn.Module) -> float:
        gradients = [p.grad.norm() for p in learned(model, guide).values() if p.grad is not None]
        return torch.stack(gradients).norm().item()

    assert size(*free) == pytest.approx(norm, rel=1e-5)
    assert size(*clipped) == pytest.approx(norm / 10, rel=1e-4)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_every_learned_tensor_gets_a_gradient(prior: str, guide: str, checkpointed: bool) -> None:
    peft_model = tiny_llama(num_labels=3)
    if checkpointed:
        checkpoint_gradients(peft_model)
    model = BayesianLora(peft_model, prior, num_data=NUM_DATA)
    fitted = GUIDES[guide](model)
    largest = dict.fromkeys(learned(model, fitted), 0.0)

    def note(row: dict[str, float]) -> None:
        for name, parameter in learned(model, fitted).items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            largest[name] = max(largest[name], parameter.grad.abs().max().item())

    fit(model, fitted, data(), num_steps=3, callbacks=[note], progress=False)
    assert {name for name, size in largest.items() if size == 0} == set()


def test_gradient_checkpointing_is_used_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit(*pair(), data(), num_steps=2, progress=False).history
    calls: list[None] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "bayeslora_pyro.adapters.slots.checkpoint",
        lambda *a, **k: (calls.append(None), checkpoint(*a, **k))[1],
    )
    model, guide = pair()
    checkpoint_gradients(model.adapter.peft_model)
    history = fit(model, guide, data(), num_steps=2, progress=False).history
    assert len(calls) == 4  # two layers, two steps
    assert [row["elbo"] for row in history] == pytest.approx([row["elbo"] for row in plain], rel=1e-6)


def test_dropout_is_on_only_when_asked_for() -> None:
    def first(**options: Any) -> float:
        model = BayesianLora(tiny_bert(dropout=0.5), num_data=NUM_DATA)
        model.adapter.peft_model.train()
        result = fit(model, MeanFieldGuide(model), data(), num_steps=1, progress=False, **options)
        assert all(module.training for module in model.adapter.peft_model.modules())
        return result.history[0]["expected_log_likelihood"]

    model = BayesianLora(tiny_bert(dropout=0.0), num_data=NUM_DATA)
    plain = fit(model, MeanFieldGuide(model), data(), num_steps=1, progress=False).history[0]
    assert first() == plain["expected_log_likelihood"]
    assert first(dropout=True) != plain["expected_log_likelihood"]
