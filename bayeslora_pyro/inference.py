"""Fitting a guide to a model by stochastic variational inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bayeslora_pyro.checkpoints import load_modules
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.ensemble import Ensemble
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import local_rng, private_pyro, training_modes
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.runs import Row, Run
from bayeslora_pyro.types import Batch

__all__ = ["FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """What a fit returns.

    Args:
        posterior: The fitted posterior, that of the first chain at its end.
        history: One row per step: `step`, `elbo`, `expected_log_likelihood`, `kl`, `kl_V`, `kl_W` (nats per item),
            `kl_weight`, and `grad_norm`, the norm of the gradient before it was clipped.
        chains: The posteriors of all chains, which predict together as an ensemble; with `snapshots`, those of each
            chain one after another, the last its end.
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
    ends, members = [], []
    for index in range(num_chains):
        seed, place = settings.seed + index, f"{checkpoint}.{index}" if checkpoint and index else checkpoint
        if index:
            model = model.fresh(model.seed + 1)
            guide = guide.fresh(model, guide.seed + 1)
        run = Run(model, guide, settings.replace(seed=seed), Path(place) if place else None)
        ends.append(_fit_chain(run, loader, resume, progress, callbacks))
        members += [*_snapshots(run, ends[-1]), ends[-1]]
    return FitResult(ends[0], ends[0].history, Ensemble(members))


def _fit_chain(
    run: Run,
    loader: Iterable[Batch],
    resume: bool,
    progress: bool,
    callbacks: Sequence[Callable[[Row], None]],
) -> Posterior:
    model, settings = run.model, run.config
    run.find_checkpoint(resume)
    modes = training_modes(
        model.adapter.peft_model, mode=lambda part: settings.dropout or _checkpoints_gradients(part)
    )
    with private_pyro(), local_rng(settings.seed), modes:
        run.go(loader, progress, callbacks)
    metadata = {"num_data": model.num_data, "kl_weight": settings.kl_weight, "fit": asdict(settings)}
    return Posterior(model, run.guide, history=run.history, metadata=metadata)


def _snapshots(run: Run, end: Posterior) -> Iterator[Posterior]:
    """The posteriors that a run has gone through, as copies of their own."""
    for step, state in run.snapshots.items():
        model = run.model.fresh(run.model.seed)
        guide = run.guide.fresh(model, run.guide.seed)
        load_modules(state, Path(f"the snapshot after step {step}"), model=model, guide=guide)
        yield Posterior(model, guide, history=run.history[:step], metadata=end.metadata | {"snapshot": step})


def _checkpoints_gradients(part: nn.Module) -> bool:
    """Whether a layer, without dropout of its own, has gradient checkpointing on, which it does in train mode only."""
    dropout = getattr(part, "dropout", None)
    return getattr(part, "gradient_checkpointing", False) and not isinstance(dropout, float)
