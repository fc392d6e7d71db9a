"""Transformers' Trainer over the negative ELBO: the numbers of `fit`, resumed, accumulated, in mixed precision."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments, default_data_collator
from transformers.trainer_utils import get_last_checkpoint

from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import FlowGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.training import ElboTrainer, Objective

from .tiny import Batch, tiny_batch, tiny_bert

SETTINGS = FitConfig(num_steps=4, kl_warmup=0.5, draws_per_batch=2, weight_decay=0.01)


def items() -> list[Batch]:
    batch = tiny_batch(items=16)
    return [{name: value[i] for name, value in batch.items()} for i in range(16)]


def objective(settings: FitConfig = SETTINGS) -> Objective:
    model = BayesianLora(tiny_bert(dropout=0.3), InducingPrior(rows=3, cols=3), num_data=16)
    return Objective(model, FlowGuide(model), settings)


def trainer(made: Objective, folder: Path, **options: Any) -> ElboTrainer:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    args = TrainingArguments(str(folder), **arguments | options)
    return InOrder(
        made, args, train_dataset=items(), eval_dataset=items()[:6], data_collator=default_data_collator
    )


class InOrder(ElboTrainer):
    """Takes the items in their order, so that `fit` can do the same."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(range(16))


def state(made: Objective) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in made.state_dict().items()}


def assert_same(ours: Objective, wanted: Objective) -> None:
    torch.testing.assert_close(state(ours), state(wanted), rtol=0, atol=0)


def loader() -> list[Batch]:
    return [default_data_collator(items()[i : i + 4]) for i in range(0, 16, 4)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer_gives_the_numbers_of_fit(accumulate: int, tmp_path: Path) -> None:
    wanted, ours = objective(), objective()
    result = fit(
        wanted.model, wanted.guide, loader(), SETTINGS, accumulate=accumulate, num_steps=4, progress=False
    )
    made = trainer(ours, tmp_path, gradient_accumulation_steps=accumulate)
    made.train()
    torch.testing.assert_close(state(ours), state(wanted), rtol=1e-5, atol=1e-6)
    history = made.posterior().history
    assert [row["elbo"] for row in history] == pytest.approx(
        [row["elbo"] for row in result.history], rel=1e-5
    )
    assert [row["kl_weight"] for row in history] == [row["kl_weight"] for row in result.history]
    assert {"expected_log_likelihood", "kl", "kl_V", "kl_W", "loss"} <= set(history[0])


def test_a_wrong_scale_of_the_divergence_would_be_caught(tmp_path: Path) -> None:
    wanted, ours = objective(), objective()
    fit(wanted.model, wanted.guide, loader(), SETTINGS, progress=False)
    ours.model.num_data = 8
    trainer(ours, tmp_path).train()
    assert any(not torch.allclose(v, state(wanted)[n], atol=1e-4) for n, v in state(ours).items())


def test_resumed_is_uninterrupted_to_the_last_bit(tmp_path: Path) -> None:
    whole, first, second = objective(), objective(), objective()
    trainer(whole, tmp_path / "whole").train()
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(first, tmp_path / "cut", max_steps=2, **options).train()
    made = trainer(second, tmp_path / "cut", **options)
    made.train(resume_from_checkpoint=get_last_checkpoint(str(tmp_path / "cut")))
    assert_same(second, whole)
    assert len(made.posterior().history) == 4


def test_evaluation_has_a_loss_and_changes_nothing(tmp_path: Path) -> None:
    made = objective()
    one = trainer(made, tmp_path, per_device_eval_batch_size=6)
    before = state(made)
    loss = one.evaluate()["eval_loss"]
    torch.testing.assert_close(state(made), before, rtol=0, atol=0)
    assert loss == pytest.approx(made(default_data_collator(items()[:6])).item(), rel=1e-4)


def test_gradient_checkpointing_gives_the_same_numbers(tmp_path: Path) -> None:
    plain, saving = objective(), objective()
    trainer(plain, tmp_path, max_steps=2).train()
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    trainer(saving, tmp_path, max_steps=2, **{name: True}).train()
    layers = saving.model.adapter.peft_model.modules()
    assert any(getattr(layer, "gradient_checkpointing", False) for layer in layers)
    torch.testing.assert_close(state(saving), state(plain), rtol=1e-5, atol=1e-6)


def test_mixed_precision_is_kept_to_the_language_model() -> None:
    made, batch = objective(), tiny_batch(items=4)
    made(batch)
    exact, seen = dict(made.parts), []
    peft_model = made.model.adapter.peft_model
    layer = peft_model.get_base_model().bert.encoder.layer[0].intermediate.dense
    handle = layer.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = made(batch)
    handle.remove()
    assert seen == [torch.bfloat16]
    assert {n: v for n, v in made.parts.items() if "kl" in n} == {n: v for n, v in exact.items() if "kl" in n}
    assert made.parts["elbo"] != exact["elbo"]
    assert made.parts["elbo"] == pytest.approx(exact["elbo"], rel=1e-2)
    loss.backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in made.parameters())


def test_the_language_model_is_no_parameter_and_stays_as_it_was(tmp_path: Path) -> None:
    made = objective()
    peft_model = made.model.adapter.peft_model
    before = {name: value.clone() for name, value in peft_model.state_dict().items()}
    trainer(made, tmp_path, max_steps=1).train()
    torch.testing.assert_close(dict(peft_model.state_dict()), before, rtol=0, atol=0)
    own = {id(parameter) for parameter in made.parameters()}
    assert not own & {id(parameter) for parameter in peft_model.parameters()}
    assert not peft_model.training
