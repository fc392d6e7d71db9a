"""One run of a fit: its steps, its checkpoint, and going on from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.checkpoints import (
    check_modules,
    load_modules,
    read_tensors,
    state_of,
    uninterrupted,
    write_tensors,
)
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import derive_seed, set_seed
from bayeslora_pyro.loading import endless_batches
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.parts import describe_guide, describe_model
from bayeslora_pyro.progress import progress_bar
from bayeslora_pyro.ranks import rank, share_start, sum_over_ranks, world_size
from bayeslora_pyro.transforms import StackedTransform
from bayeslora_pyro.types import Batch, to_device

__all__ = ["Row", "Run", "check_draw_per_item", "group_parameters", "optimizer_groups"]

Row = dict[str, float]
"""One step of the history: the ELBO and its parts in nats per item, and the KL weight."""

HEADER = {"config": dict, "model": dict, "guide": dict, "history": list}
"""What the header of a checkpoint holds."""

CURE = "Lower learning_rate, or start with a smaller scale."

MAY_CHANGE = ("num_steps", "checkpoint_every")
"""The settings that a resumed run may change."""


class Run:
    """The state of a fit: the modules, the optimizer, the step, the history.

    Args:
        model: The model, changed in place.
        guide: The guide, changed in place.
        config: The settings.
        checkpoint: The file for the state; None for none.

    Raises:
        ValueError: If each item should have a draw of its own, and the guide has no way to.
    """

    def __init__(self, model: BayesianLora, guide: Guide, config: FitConfig, checkpoint: Path | None) -> None:
        check_draw_per_item(guide, config)
        self.model, self.guide, self.config, self.checkpoint = model, guide, config, checkpoint
        self.elbo = PartsELBO()  # type: ignore[no-untyped-call]
        self.history: list[Row] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}  # by the number of steps done, without the end
        groups = optimizer_groups(model, guide, config)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.history)

    def go(self, loader: Iterable[Batch], progress: bool, callbacks: Sequence[Callable[[Row], None]]) -> None:
        """Takes the steps that are left."""
        config, count = self.config, self.config.accumulate * world_size()
        share_start([*self.model.state_dict().values(), *self.guide.state_dict().values()])
        batches = endless_batches(loader, config.seed, skip=self.step * count)
        try:
            with progress_bar(config.num_steps, self.step, enabled=progress and rank() == 0) as advance:
                while self.step < config.num_steps:
                    row = self.take_step([next(batches) for _ in range(count)])
                    for callback in (advance, *callbacks):
                        callback(row)
                    if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                        self.save()
        finally:
            batches.close()
            self.save()

    def take_step(self, batches: Sequence[Batch]) -> Row:
        """Takes one step over some micro-batches, and returns its row of the history.

        Of several processes, each takes every so manieth batch, with a draw of its own for each; what one process
        would do with all of the batches, and what several do, is the same but for rounding.
        """
        step, config = self.step, self.config
        kl_weight = config.kl_weight_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * config.learning_rate_factor_at(step)
        self.optimizer.zero_grad()
        sizes = [self.model.likelihood.num_items(batch) for batch in batches]
        rows: list[Row] = []
        for index in range(rank(), len(batches), world_size()):
            set_seed(derive_seed(config.seed, "step", step, *([index] if index else [])))
            share = sizes[index] / sum(sizes) / config.num_particles
            rows += self._add_gradient(to_device(batches[index], self.model.adapter.device), share, kl_weight)
        sum_over_ranks(parameter.grad for parameter in self.parameters if parameter.grad is not None)
        row = {"step": float(step)} | _sum_of(rows, self.model.adapter.device) | {"kl_weight": kl_weight}
        row["grad_norm"] = self._clip_gradient(step)
        with uninterrupted():
            self.optimizer.step()
            self.history.append(row)
            if self.step in self.config.snapshot_steps[:-1]:
                state = state_of(model=self.model, guide=self.guide)
                self.snapshots[self.step] = {name: value.clone() for name, value in state.items()}
        return row

    def _add_gradient(self, batch: Batch, share: float, kl_weight: float) -> list[Row]:
        """Adds the gradient of a batch, weighted by its share; returns the parts of the ELBO weighted alike."""
        num_draws = self.model.likelihood.most_draws(batch, self.config.draws_per_batch)
        rows = []
        for _ in range(self.config.num_particles):
            parts = self._estimate(batch, num_draws)
            loss = parts.loss(kl_weight) * (share / self.model.num_data)
            if world_size() == 1:  # else the gradient says it, to all processes at once
                _check_finite(loss, parts, self.step)
            loss.backward()
            values = parts.values(self.model.num_data)
            rows.append({name: value * share for name, value in values.items()})
        return rows

    def _estimate(self, batch: Batch, num_draws: int) -> ElboParts:
        per_item = self.guide.per_item() if self.config.draw_per_item else None
        try:
            return self.elbo.parts(self.model, self.guide, batch, num_draws, per_item)
        except FloatingPointError as error:
            raise FloatingPointError(f"Step {self.step}: {error} {CURE}") from error

    def _clip_gradient(self, step: int) -> float:
        """Clips the gradient, where that is wanted, and returns the norm it had."""
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if not bool(norm.isfinite()):
            raise FloatingPointError(
                f"Step {step}: the gradient of {self._first_broken()!r} is not finite. {CURE}"
            )
        if self.config.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, norm)
        return norm.item()

    def _first_broken(self) -> str | None:
        named = (*self.model.named_parameters(), *self.guide.named_parameters())
        broken = (name for name, p in named if p.grad is not None and not bool(p.grad.isfinite().all()))
        return next(broken, None)

    def save(self) -> None:
        """Writes the checkpoint, if there is to be one; of several processes, the first does."""
        if self.checkpoint is None or rank():
            return
        moments = {
            f"optimizer.{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        kept = {
            f"snapshot.{step}.{name}": value
            for step, state in self.snapshots.items()
            for name, value in state.items()
        }
        tensors = state_of(model=self.model, guide=self.guide) | moments | kept
        write_tensors(self.checkpoint, tensors, self._describe() | {"history": self.history})

    def _describe(self) -> dict[str, dict[str, Any]]:
        """What has to be the same for a run to go on from a checkpoint."""
        model, guide = describe_model(self.model), describe_guide(self.guide)
        config = asdict(self.config) | {"num_processes": world_size()}
        return {"config": config, "model": model, "guide": {"guide": guide}}

    def find_checkpoint(self, resume: bool) -> None:
        """Goes back to the state of the checkpoint, if there is one and it is wanted.

        Raises:
            ValueError: If the file is there and is no checkpoint, or was written with other settings.
        """
        if self.checkpoint is None:
            if resume:
                raise ValueError("resume needs checkpoint, the file to resume from.")
            return
        if self.checkpoint.is_dir():
            raise ValueError(f"checkpoint should be a file, and {self.checkpoint} is a folder.")
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            return
        tensors, header = read_tensors(self.checkpoint)
        whole = all(isinstance(header.get(name), kind) for name, kind in HEADER.items())
        if not whole or not all(isinstance(row, dict) for row in header["history"]):
            raise ValueError(f"{self.checkpoint} is no checkpoint of a fit: choose another file.")
        if resume:
            self._restore(self.checkpoint, tensors, header)

    def _restore(self, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        for part, settings in self._describe().items():
            for name, value in settings.items():
                known = header[part].get(name, 1 if name == "num_processes" else None)
                if name not in MAY_CHANGE and known != value:
                    raise ValueError(
                        f"{path} was written with {name}={known!r}, and this run has "
                        f"{name}={value!r}. Give the same settings, or start anew without resume."
                    )
        snapshots = _numbered(tensors, "snapshot")
        done, wanted = len(header["history"]), self.config.snapshot_steps[:-1]
        if missed := [step for step in wanted if step <= done and step not in snapshots]:
            raise ValueError(
                f"{path} is of a run of {done} steps without a snapshot after step {missed[0]}, which "
                f"num_steps={self.config.num_steps} asks for. Give the num_steps that it was started with."
            )
        for state in snapshots.values():
            check_modules(state, path, model=self.model, guide=self.guide)
        optimizer = _numbered(tensors, "optimizer")
        self._check_moments(optimizer, path)
        load_modules(tensors, path, model=self.model, guide=self.guide)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        self.snapshots = {step: snapshots[step] for step in wanted if step in snapshots}
        self.history = list(header["history"])

    def _check_moments(self, optimizer: Mapping[int, Mapping[str, Tensor]], path: Path) -> None:
        """Refuses moments that are not those of the parameters, which the optimizer itself would not notice."""
        for index, state in optimizer.items():
            shape = self.parameters[index].shape if index < len(self.parameters) else None
            expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
            if {name: value.shape for name, value in state.items()} != expected:
                raise ValueError(
                    f"{path} does not belong to this model and guide: the optimizer's moments of parameter {index} are "
                    "of another shape. Start anew without resume."
                )


def _numbered(tensors: Mapping[str, Tensor], prefix: str) -> dict[int, dict[str, Tensor]]:
    """Collects tensors called `prefix.number.name` by number and name."""
    collected: dict[int, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        kind, _, rest = full_name.partition(".")
        if kind == prefix:
            number, _, name = rest.partition(".")
            if not number.isdecimal():
                raise ValueError(f"The checkpoint has a tensor {full_name!r}, which is no fit's: start anew.")
            collected.setdefault(int(number), {})[name] = tensor
    return collected


def check_draw_per_item(guide: Guide, config: FitConfig) -> None:
    """Raises a `ValueError` if each item should have a draw of its own, and no stack of the guide has a way to."""
    if config.draw_per_item and not guide.per_item():
        raise ValueError(
            f"draw_per_item=True needs factors with independent entries or dropped columns, and "
            f"{type(guide).__name__} has none over this prior: fit with draw_per_item=False, or take MeanFieldGuide or "
            "DropoutGuide over a prior of the factors themselves, such as GaussianPrior."
        )


def group_parameters(model: BayesianLora, guide: Guide) -> tuple[list[nn.Parameter], ...]:
    """The parameters of prior, likelihood and base distributions; of the flows; and of the head."""
    flows = [p for part in guide.modules() if isinstance(part, StackedTransform) for p in part.parameters()]
    head = list(model.head.parameters())
    apart = {id(parameter) for parameter in flows + head}
    rest = [p for p in (*model.parameters(), *guide.parameters()) if id(p) not in apart and p.requires_grad]
    return rest, flows, head


def optimizer_groups(model: BayesianLora, guide: Guide, config: FitConfig) -> list[dict[str, Any]]:
    """The groups of :func:`group_parameters` that are not empty, each with its step size, for an optimizer."""
    rates = (config.learning_rate, config.flow_learning_rate, config.head_learning_rate)
    return [
        {"params": parameters, "lr": rate, "initial_lr": rate}
        for parameters, rate in zip(group_parameters(model, guide), rates, strict=True)
        if parameters
    ]


def _sum_of(rows: Sequence[Row], device: torch.device) -> Row:
    """The sum of rows of weighted parts, over all processes."""
    names = list(rows[0])
    totals = torch.tensor([sum(row[name] for row in rows) for name in names], dtype=torch.float64)
    if world_size() == 1:
        return dict(zip(names, totals.tolist(), strict=True))
    totals = totals.to(device)
    sum_over_ranks([totals])
    return dict(zip(names, totals.tolist(), strict=True))


def _check_finite(loss: Tensor, parts: ElboParts, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"Step {step}: the loss is {loss.item()}; the first site that is not finite is {parts.first_broken()!r}. "
            f"{CURE}"
        )
