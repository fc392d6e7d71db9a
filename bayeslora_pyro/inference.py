"""Fitting a guide to a model by stochastic variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora_pyro.checkpoints import load_modules, read_tensors, state_of, uninterrupted, write_tensors
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import derive_seed, local_rng, private_pyro
from bayeslora_pyro.loading import endless_batches
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.parts import describe_guide, describe_model
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.progress import progress_bar
from bayeslora_pyro.transforms import StackedTransform
from bayeslora_pyro.types import Batch

__all__ = ["FitResult", "fit"]

Row = dict[str, float]
"""One step of the history: the ELBO and its parts in nats per item, and the KL weight."""

HEADER = {"config": dict, "model": dict, "guide": dict, "history": list}
"""What the header of a checkpoint holds."""

CURE = "Lower learning_rate, or start with a smaller scale."

MAY_CHANGE = ("num_steps", "checkpoint_every")
"""The settings that a resumed run may change."""


@dataclass(frozen=True)
class FitResult:
    """What a fit returns.

    Args:
        posterior: The fitted posterior, that of the first chain.
        history: One row per step: `step`, `elbo`, `expected_log_likelihood`, `kl`, `kl_V`, `kl_W` (nats per item),
            `kl_weight`, and `grad_norm`, the norm of the gradient before it was clipped.
        chains: The posteriors of all chains, which predict together as an ensemble.
    """

    posterior: Posterior
    history: list[Row]
    chains: Ensemble


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
    num_chains: int = 1,
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
        checkpoint: A file for the state of the run, written every `checkpoint_every` steps and when the run ends, be it
            by Ctrl-C or by an error.
        resume: Whether to go on from the checkpoint if there is one. Of the settings, only `num_steps` and
            `checkpoint_every` may then be others.
        callbacks: Called with each row of the history.
        num_chains: The number of independent fits, one after another. Chain `k` starts anew from the seed `+ k`, its
            model and guide being copies, and its checkpoint has `.k` appended to its name.
        options: Fields of :class:`FitConfig`.

    Returns:
        The posterior and the history.

    Raises:
        FloatingPointError: If the loss, or its gradient, stops being finite, or a matrix of a site cannot be
            factorized, with the step and the site. Model, guide and checkpoint are then as they were before that step.
        ValueError: If the loader is empty, or the checkpoint is damaged or of another run.
    """
    if num_chains < 1:
        raise ValueError(f"num_chains should be at least 1, and is {num_chains}.")
    settings = (config or FitConfig()).replace(**options)
    posteriors = []
    for index in range(num_chains):
        seed, place = settings.seed + index, f"{checkpoint}.{index}" if checkpoint and index else checkpoint
        if index:
            model = model.fresh(model.seed + 1)
            guide = guide.fresh(model, guide.seed + 1)
        run = _Run(model, guide, settings.replace(seed=seed), Path(place) if place else None)
        posteriors.append(_fit_chain(run, loader, resume, progress, callbacks))
    return FitResult(posteriors[0], posteriors[0].history, Ensemble(posteriors))


def _fit_chain(
    run: _Run,
    loader: Iterable[Batch],
    resume: bool,
    progress: bool,
    callbacks: Sequence[Callable[[Row], None]],
) -> Posterior:
    model, settings = run.model, run.config
    run.find_checkpoint(resume)
    with private_pyro(), local_rng(settings.seed), _mode(model.adapter.peft_model, train=settings.dropout):
        run.go(loader, progress, callbacks)
    metadata = {"num_data": model.num_data, "kl_weight": settings.kl_weight, "fit": asdict(settings)}
    return Posterior(model, run.guide, history=run.history, metadata=metadata)


class _Run:
    """The state of a fit: the modules, the optimizer, the step, the history."""

    def __init__(self, model: BayesianLora, guide: Guide, config: FitConfig, checkpoint: Path | None) -> None:
        self.model, self.guide, self.config, self.checkpoint = model, guide, config, checkpoint
        self.elbo = PartsELBO()  # type: ignore[no-untyped-call]
        self.history: list[Row] = []
        groups: list[dict[str, Any]] = [
            {"params": parameters, "lr": rate, "initial_lr": rate}
            for parameters, rate in zip(
                _group_parameters(model, guide),
                (config.learning_rate, config.flow_learning_rate, config.head_learning_rate),
                strict=True,
            )
            if parameters
        ]
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.history)

    def go(self, loader: Iterable[Batch], progress: bool, callbacks: Sequence[Callable[[Row], None]]) -> None:
        config = self.config
        batches = endless_batches(loader, config.seed, skip=self.step * config.accumulate)
        try:
            with progress_bar(config.num_steps, self.step, enabled=progress) as advance:
                while self.step < config.num_steps:
                    micro_batches = [next(batches) for _ in range(config.accumulate)]
                    torch.manual_seed(derive_seed(config.seed, "step", self.step))
                    row = self.take_step(micro_batches)
                    for callback in (advance, *callbacks):
                        callback(row)
                    if config.checkpoint_every and self.step % config.checkpoint_every == 0:
                        self.save()
        finally:
            batches.close()
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
            on_device = _to(batch, self.model.adapter.device)
            num_draws = self.model.likelihood.most_draws(on_device, config.draws_per_batch)
            for _ in range(config.num_particles):
                parts = self._estimate(on_device, num_draws)
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
        row["grad_norm"] = self._clip_gradient(step)
        with uninterrupted():
            self.optimizer.step()
            self.history.append(row)
        return row

    def _estimate(self, batch: Batch, num_draws: int) -> ElboParts:
        try:
            return self.elbo.parts(self.model, self.guide, batch, num_draws)
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
        """Writes the checkpoint, if there is to be one."""
        if self.checkpoint is None:
            return
        moments = {
            f"optimizer.{index}.{name}": value
            for index, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        tensors = state_of(model=self.model, guide=self.guide) | moments
        write_tensors(self.checkpoint, tensors, self._describe() | {"history": self.history})

    def _describe(self) -> dict[str, dict[str, Any]]:
        """What has to be the same for a run to go on from a checkpoint."""
        model, guide = describe_model(self.model), describe_guide(self.guide)
        return {"config": asdict(self.config), "model": model, "guide": {"guide": guide}}

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
        if not all(isinstance(header.get(name), kind) for name, kind in HEADER.items()):
            raise ValueError(f"{self.checkpoint} is no checkpoint of a fit: choose another file.")
        if resume:
            self._restore(self.checkpoint, tensors, header)

    def _restore(self, path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
        for part, settings in self._describe().items():
            for name, value in settings.items():
                if name not in MAY_CHANGE and header[part].get(name) != value:
                    raise ValueError(
                        f"{path} was written with {name}={header[part].get(name)!r}, and this run has "
                        f"{name}={value!r}. Give the same settings, or start anew without resume."
                    )
        load_modules(tensors, path, model=self.model, guide=self.guide)
        self._restore_optimizer(tensors)
        self.history = list(header["history"])

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def _group_parameters(model: BayesianLora, guide: Guide) -> tuple[list[nn.Parameter], ...]:
    """The parameters of prior, likelihood and base distributions; of the flows; and of the head."""
    flows = [p for part in guide.modules() if isinstance(part, StackedTransform) for p in part.parameters()]
    head = list(model.head.parameters())
    apart = {id(parameter) for parameter in flows + head}
    rest = [p for p in (*model.parameters(), *guide.parameters()) if id(p) not in apart and p.requires_grad]
    return rest, flows, head


def _check_finite(loss: Tensor, parts: ElboParts, step: int) -> None:
    if not math.isfinite(loss.item()):
        raise FloatingPointError(
            f"Step {step}: the loss is {loss.item()}; the first site that is not finite is {parts.first_broken()!r}. "
            f"{CURE}"
        )


def _to(batch: Batch, device: torch.device) -> Batch:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


@contextmanager
def _mode(module: nn.Module, *, train: bool) -> Iterator[None]:
    """Puts a module into train or eval mode, and each part back into its own afterwards."""
    before = {part: part.training for part in module.modules()}
    try:
        for part in before:
            part.training = train or _checkpoints_gradients(part)
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _checkpoints_gradients(part: nn.Module) -> bool:
    """Whether a layer, without dropout of its own, has gradient checkpointing on, which it does in train mode only."""
    dropout = getattr(part, "dropout", None)
    return getattr(part, "gradient_checkpointing", False) and not isinstance(dropout, float)
