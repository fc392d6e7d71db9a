"""Transformers' Trainer over the negative ELBO."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.training.objective import Objective

__all__ = ["ElboTrainer"]


class ElboTrainer(Trainer):
    r"""A `Trainer` that fits a guide: its resuming, logging, mixed precision, accumulation and launching are its own.

    Step sizes, the KL weight and its warm-up, the noise and its seed are those of the settings of the objective, as in
    `fit`: `learning_rate` and `seed` of the arguments are not used for them, `lr_scheduler_type` is. Every log has the
    parts of the ELBO in nats per item (`elbo`, `expected_log_likelihood`, `kl`, …) and `kl_weight`; `eval_loss` is the
    loss of the evaluation set at the step reached.

    Args:
        objective: The negative ELBO.
        args: The arguments; what a collator yields is kept whole, whatever `remove_unused_columns` says.
        options: Further arguments of `Trainer`, such as `train_dataset`, `data_collator` and `callbacks`.
    """

    def __init__(self, objective: Objective, args: TrainingArguments, **options: Any) -> None:
        args = copy.copy(args)
        args.remove_unused_columns = False
        self._parts: dict[str, list[float]] = defaultdict(list)
        self._micro = (-1, 0)
        self.objective: Objective = objective
        super().__init__(model=objective, args=args, **options)
        objective.model.adapter.peft_model.to(args.device)

    def create_optimizer(self, *_: Any, **__: Any) -> torch.optim.Optimizer:
        """Makes AdamW with the step sizes of the settings."""
        if self.optimizer is None:
            decay = self.objective.settings.weight_decay
            self.optimizer = torch.optim.AdamW(self.objective.optimizer_groups(), weight_decay=decay)
        return self.optimizer

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains; see `Trainer.train`."""
        with self.objective.modes():
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of a batch."""
        step = self.state.global_step
        micro = self._micro[1] + 1 if self._micro[0] == step else 0
        if model.training:
            self._micro = (step, micro)
        loss = model(inputs, step, micro)
        if model.training:
            for name, value in self.objective.parts.items():
                self._parts[name].append(value)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        """The loss of a batch of the evaluation set."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs, with the averages of the parts of the ELBO since the last log."""
        if "loss" in logs and self._parts:
            logs |= {name: sum(values) / len(values) for name, values in self._parts.items()}
            logs["kl_weight"] = self.objective.settings.kl_weight_at(max(0, self.state.global_step - 1))
            self._parts.clear()
        super().log(logs, *args, **kwargs)

    def posterior(self) -> Posterior:
        """The posterior as it is now, with the logged rows as its history."""
        rows = [row for row in self.state.log_history if "elbo" in row]
        return self.objective.posterior(rows)
