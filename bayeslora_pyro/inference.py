"""Fitting a guide to a model by stochastic variational inference."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.checkpoints import load_modules, read_tensors, state_of, write_tensors
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import derive_seed, local_rng, private_pyro
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.progress import progress_bar
from bayeslora_pyro.types import Batch

__all__ = ["FitResult", "fit"]

Row = dict[str, float]
"""One step of the history: the ELBO and its parts in nats per item, and the KL weight."""


@dataclass(frozen=True)
class FitResult:
    """What a fit returns.

    Args:
        posterior: The fitted posterior.
        history: One row per step: `step`, `elbo`, `expected_log_likelihood`, `kl`, `kl_V`, `kl_W` (nats per item),
            `kl_weight`, and `grad_norm` where gradients are clipped.
    """

    posterior: Posterior
    history: list[Row]


def fit(
    model: BayesianLora,
    guide: Guide,
    loader: Iterable[Batch],
    config: FitConfig | None = None,
    *,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callable[[Row], None]] = (),
    **options: Any,
) -> FitResult:
    r"""Maximises the ELBO of a guide over mini-batches.

    .. math:: \mathcal{L} = \frac{N}{|B|} \sum_{n \in B} \mathbb{E}_q \log p(y_n \mid x_n, W)
        - \beta \big(\mathrm{KL}_V + \mathrm{KL}_W\big)

    With :math:`\beta = 1` it is the ELBO; anything else is called tempered wherever it is shown. Every random number
    is a function of the seed and the step, so a run that was interrupted and resumed gives the numbers of one that
    was not.

    Args:
        model: The model.
        guide: The guide; changed in place, as is the model.
        loader: Batches, gone through again and again. A `DataLoader` is shuffled anew from the seed in each epoch.
        config: The settings; single ones may be given by name instead, as in `fit(…, num_steps=600)`.
        progress: Whether to show a progress bar.
        checkpoint: A file for the state of the run, written every `checkpoint_every` steps and when it is interrupted.
        resume: Whether to go on from the checkpoint if there is one.
        callbacks: Called with each row of the history.
        options: Fields of :class:`FitConfig`.

    Returns:
        The posterior and the history.

    Raises:
        FloatingPointError: If the loss stops being finite, with the step and the site.
    """
    settings = (config or FitConfig()).replace(**options)
    run = _Run(model, guide, settings, Path(checkpoint) if checkpoint else None)
    if resume:
        run.restore()
    with private_pyro(), local_rng(settings.seed), _mode(model.adapter.peft_model, train=settings.dropout):
        run.go(loader, progress, callbacks)
    metadata = {"fit": asdict(settings), "num_data": model.num_data}
    return FitResult(Posterior(model, guide, history=run.history, metadata=metadata), run.history)


class _Run:
    """The state of a fit: the modules, the optimizer, the step, the history."""

    def __init__(self, model: BayesianLora, guide: Guide, config: FitConfig, checkpoint: Path | None) -> None:
        self.model, self.guide, self.config, self.checkpoint = model, guide, config, checkpoint
        self.elbo = PartsELBO()
        self.history: list[Row] = []
        head = list(model.head.parameters())
        known = {id(parameter) for parameter in head}
        rest = [
            p for p in (*model.parameters(), *guide.parameters()) if id(p) not in known and p.requires_grad
        ]
        groups = [
            {"params": rest, "lr": config.learning_rate, "initial_lr": config.learning_rate},
            {"params": head, "lr": config.head_learning_rate, "initial_lr": config.head_learning_rate},
        ]
        self.parameters = rest + head
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], weight_decay=config.weight_decay
        )

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.history)

    def go(self, loader: Iterable[Batch], progress: bool, callbacks: Sequence[Callable[[Row], None]]) -> None:
        config = self.config
        batches = _cycle(loader, config.seed, skip=self.step * config.accumulate)
        try:
            with progress_bar(config.num_steps, self.step, enabled=progress) as advance:
                while self.step < config.num_steps:
                    micro_batches = [next(batches) for _ in range(config.accumulate)]
                    torch.manual_seed(derive_seed(config.seed, "step", self.step))
                    row = self.take_step(micro_batches)
                    for callback in (advance, *callbacks):
                        callback(row)
                    if (
                        self.checkpoint
                        and config.checkpoint_every
                        and self.step % config.checkpoint_every == 0
                    ):
                        self.save()
        finally:
            batches.close()
            if self.checkpoint:
                self.save()

    def take_step(self, batches: Sequence[Batch]) -> Row:
        step, config = self.step, self.config
        kl_weight = config.kl_weight_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * config.learning_rate_factor_at(step)
        self.optimizer.zero_grad()
        sizes = [self.model.likelihood.num_items(batch) for batch in batches]
        rows = []
        for batch, size in zip(batches, sizes, strict=True):
            share = size / sum(sizes) / config.num_particles
            for _ in range(config.num_particles):
                parts = self.elbo.parts(self.model, self.guide, _to(batch, self.model.adapter.device))
                loss = parts.loss(kl_weight) * (share / self.model.num_data)
                _check_finite(loss, parts, step)
                loss.backward()
                rows.append(
                    {name: value * share for name, value in parts.values(self.model.num_data).items()}
                )
        row = (
            {"step": float(step)}
            | {name: sum(r[name] for r in rows) for name in rows[0]}
            | {"kl_weight": kl_weight}
        )
        if config.max_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
            if not bool(norm.isfinite()):
                raise FloatingPointError(f"Step {step}: the gradient is not finite. Lower learning_rate.")
            row["grad_norm"] = norm.item()
        with _uninterrupted():
            self.optimizer.step()
            self.history.append(row)
        return row

    def save(self) -> None:
        """Writes the checkpoint."""
        if self.checkpoint is None:
            return
        moments = {
            f"optimizer.{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        tensors = state_of(model=self.model, guide=self.guide) | moments
        write_tensors(self.checkpoint, tensors, {"config": asdict(self.config), "history": self.history})

    def restore(self) -> None:
        """Goes back to the state of the checkpoint, if there is one."""
        if self.checkpoint is None:
            raise ValueError("resume needs checkpoint, the file to resume from.")
        if not self.checkpoint.exists():
            return
        tensors, header = read_tensors(self.checkpoint)
        changed = [name for name, value in asdict(self.config).items() if header["config"].get(name) != value]
        if changed := [name for name in changed if name not in ("num_steps", "checkpoint_every")]:
            name = changed[0]
            raise ValueError(
                f"{self.checkpoint} was written with {name}={header['config'].get(name)!r}, and this run has "
                f"{name}={getattr(self.config, name)!r}. Give the same settings, or start anew without resume."
            )
        load_modules(tensors, self.checkpoint, model=self.model, guide=self.guide)
        self._restore_optimizer(tensors)
        self.history = header["history"]

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _check_finite(loss: Tensor, parts: ElboParts, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"Step {step}: the loss is {loss.item()}; the first site that is not finite is {parts.first_broken()!r}. "
            "Lower learning_rate, or start with a smaller scale."
        )


def _cycle(loader: Iterable[Batch], seed: int, skip: int) -> Iterator[Batch]:
    """Goes through the loader for ever, each epoch in an order that is a function of the seed and the epoch."""
    generators = {
        g for g in (getattr(loader, "generator", None), _sampler_generator(loader)) if g is not None
    }
    before = {generator: (generator.initial_seed(), generator.get_state()) for generator in generators}
    epoch = 0
    try:
        while True:
            torch.manual_seed(derive_seed(seed, "epoch", epoch))
            for generator, (initial_seed, _) in before.items():
                generator.manual_seed(derive_seed(seed, initial_seed, epoch))
            count = 0
            for batch in loader:
                count += 1
                if skip > 0:
                    skip -= 1
                else:
                    yield batch
            if count == 0:
                raise ValueError("loader yields no batch: give it at least one item.")
            epoch += 1
    finally:
        for generator, (_, state) in before.items():
            generator.set_state(state)


def _sampler_generator(loader: Iterable[Batch]) -> torch.Generator | None:
    return getattr(getattr(loader, "sampler", None), "generator", None)


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


@contextmanager
def _mode(module: nn.Module, *, train: bool) -> Iterator[None]:
    """Puts a module into train or eval mode, and each part back into its own afterwards."""
    before = {part: part.training for part in module.modules()}
    try:
        module.train(train)
        yield
    finally:
        for part, training in before.items():
            part.training = training


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Puts off Ctrl-C until the context is left, so that no checkpoint holds half a step."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
