"""A fitted posterior: what is drawn from it, predicted with it, and kept of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from bayeslora_pyro import folders
from bayeslora_pyro.adapters import write_folder
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import local_rng, private_pyro
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.tiling import draws_per_pass
from bayeslora_pyro.types import Batch, FactorStack, Weights

__all__ = ["Posterior"]

MEAN_DRAWS = 4096


class Posterior:
    r"""The approximate posterior of the LoRA factors, :math:`q(W)`, with the model it belongs to.

    Draw `s` under a seed is a function of that seed and `s` alone: the first four of sixteen draws are the draws of
    `num_draws=4`, however the draws are spread over forward passes.

    Args:
        model: The model.
        guide: The fitted guide.
        history: The history of the fit.
        metadata: What else is known of the fit; JSON values only.
    """

    def __init__(
        self,
        model: BayesianLora,
        guide: Guide,
        *,
        history: Sequence[Mapping[str, float]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.guide = guide
        self.history = [dict(row) for row in history]
        self.metadata = dict(metadata or {})

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors."""
        return self.model.stacks

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """The names of the dimensions of each latent site, such as `("adapter", "inducing_row", "inducing_col")`."""
        with _evaluating(self.model):
            sites: dict[str, Any] = dict(self._trace(0, 0).nodes)
        return {n: ("adapter", *site["infer"]["event_dims"]) for n, site in sites.items() if _is_latent(site)}

    def sample(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Draws the latent sites. Shapes `(draw, L, …)`, by site name."""
        with _evaluating(self.model):
            return _stack_values(self._trace(seed, draw) for draw in range(num_draws))

    def sample_prior(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Draws the latent sites from the prior. Shapes `(draw, L, …)`, by site name."""
        with _evaluating(self.model):
            return _stack_values(self._prior_trace(seed, draw) for draw in range(num_draws))

    def weights(self, num_draws: int, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """Draws all factors. Shapes `(draw, L, d_o, d_i)`, by stack name.

        Args:
            num_draws: The number of draws.
            seed: The seed.
            first: The index of the first draw.
        """
        with _evaluating(self.model):
            draws = [self._weights_of(seed, draw) for draw in range(first, first + num_draws)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def log_weights(self, num_draws: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The log-densities of the same draws under the prior and under the guide. Shapes `(draw,)`."""
        rows = []
        with _evaluating(self.model):
            for draw in range(num_draws):
                guide_trace = self._trace(seed, draw)
                prior_trace = poutine.trace(
                    poutine.replay(self.model.sample_weights, trace=guide_trace)
                ).get_trace()
                sums = (prior_trace.log_prob_sum(), guide_trace.log_prob_sum())
                rows.append(torch.stack([torch.as_tensor(value) for value in sums]))
        log_p, log_q = torch.stack(rows, dim=-1).double()
        return log_p, log_q

    def predict(
        self, batches: Iterable[Batch], num_draws: int = 16, seed: int = 0, *, memory_budget: int = 2**28
    ) -> Prediction | RegressionPrediction:
        """Predicts each item of some batches with each of some draws.

        Args:
            batches: What a collator yields; items keep this order.
            num_draws: The number of draws.
            seed: The seed of the draws.
            memory_budget: About how many bytes the activations of one forward pass may take; it decides how many
                draws share a pass, never what comes out.
        """
        rows: list[tuple[Tensor, ...]] = []
        labels: list[Tensor | None] = []
        for batch, predictive in self._predictives(batches, num_draws, seed, memory_budget):
            rows.append(_numbers(predictive))
            labels.append(batch.get("labels"))
        if not rows:
            raise ValueError("batches is empty: there is nothing to predict.")
        columns = [_join(parts) for parts in zip(*rows, strict=True)]
        known = [label.cpu() for label in labels if label is not None]
        observed = torch.cat(known) if len(known) == len(labels) else None
        return (
            Prediction(columns[0], observed)
            if len(columns) == 1
            else RegressionPrediction(columns[0], columns[1], observed)
        )

    def log_likelihood(
        self, batches: Iterable[Batch], num_draws: int = 16, seed: int = 0, *, memory_budget: int = 2**28
    ) -> Tensor:
        """The log-likelihood of each item under each draw. Shape `(draw, item)`."""
        columns, device = [], self.model.adapter.device
        for batch, predictive in self._predictives(batches, num_draws, seed, memory_budget):
            observed = self.model.likelihood.observed(batch)
            if observed is None:
                raise ValueError("batches have no labels: there is nothing to score.")
            scored = observed.to(device)
            columns.append(torch.cat([p.log_prob(scored) for p in predictive]).cpu())
        return torch.cat(columns, dim=-1)

    def _predictives(
        self, batches: Iterable[Batch], num_draws: int, seed: int, memory_budget: int
    ) -> Iterator[tuple[Batch, list[dist.TorchDistribution]]]:
        """Yields, for each batch, the predictive distributions of its chunks of draws."""
        if num_draws < 1:
            raise ValueError(f"num_draws should be at least 1, and is {num_draws}.")
        weights = self.weights(num_draws, seed)
        device = self.model.adapter.device
        with _evaluating(self.model):
            for batch in batches:
                on_device = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
                size = draws_per_pass(self.model.adapter.peft_model, on_device, memory_budget)
                yield (
                    batch,
                    [
                        self._predictive({n: w[i : i + size] for n, w in weights.items()}, on_device)
                        for i in range(0, num_draws, size)
                    ],
                )

    def _predictive(self, weights: Weights, batch: Batch) -> dist.TorchDistribution:
        """The distribution of the observations, with batch shape `(draws, items)`."""
        distribution = self.model.likelihood.distribution(self.model.run_with(weights, batch), batch)
        draws = next(iter(weights.values())).shape[0]
        return distribution.expand((draws, self.model.likelihood.num_items(batch)))

    def mean_adapter(self) -> dict[str, Tensor]:
        r"""The posterior mean of each factor, :math:`\mathbb{E}_q W`. Shapes `(L, d_o, d_i)`, by stack name.

        Exact where the base family has a mean and there is no flow; through a flow, the average of 4,096 draws of the
        latent site. A and B are independent under the guide, so `scaling · E[B] E[A]` is the mean of the update.
        """
        weights = {}
        with _evaluating(self.model), local_rng("mean"):
            for stack in self.stacks:
                prior = self.model.prior_of(stack)
                if prior.latent is None:
                    weights[stack.name] = prior.sample_weights(stack).clone()
                    continue
                latent = _mean_of(self.guide.get_posterior(stack))
                conditional = prior.conditional(stack, latent)
                weights[stack.name] = latent if conditional is None else conditional.mean
        return weights

    def draws(self, num_draws: int, folder: str | Path, seed: int = 0) -> list[Path]:
        """Writes draws as ordinary PEFT folders, which any multi-LoRA server can load.

        Args:
            num_draws: The number of draws.
            folder: Where the folders `draw-000`, `draw-001`, … go.
            seed: The seed of the draws.
        """
        paths = []
        for index in range(num_draws):
            path = Path(folder) / f"draw-{index:03d}"
            weights = {name: weight[0] for name, weight in self.weights(1, seed, first=index).items()}
            with folders.new_folder(path) as target:
                write_folder(self.model.adapter, weights, self.model.head_values(), target)
            paths.append(path)
        return paths

    def save(self, folder: str | Path) -> None:
        """Writes a folder that PEFT loads as the posterior mean, and :meth:`load` as the posterior itself."""
        folders.save(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, base_model: Any = None, **parts: Any) -> Posterior:
        """Reads a posterior, exactly as it was saved.

        Args:
            folder: What :meth:`save` wrote.
            base_model: The base model, without an adapter; by default the one that the folder names.
            parts: `prior`, `likelihood` or `guide` (a callable from the model) where it is not one of the library's.

        Raises:
            ValueError: If the folder is damaged, or belongs to another base model.
        """
        model, guide, record = folders.load(Path(folder), base_model, **parts)
        return cls(model, guide, history=record["history"], metadata=record["metadata"])

    def _trace(self, seed: int, draw: int) -> poutine.Trace:
        with local_rng(seed, "draw", draw):
            return poutine.trace(self.guide).get_trace()

    def _prior_trace(self, seed: int, draw: int) -> poutine.Trace:
        with local_rng(seed, "prior", draw):
            return poutine.trace(self.model.sample_weights).get_trace()

    def _weights_of(self, seed: int, draw: int) -> dict[str, Tensor]:
        with local_rng(seed, "draw", draw):
            weights = self.guide()
        fixed = {stack.name: stack for stack in self.stacks if stack.name not in weights}
        return weights | {
            name: self.model.prior_of(stack).sample_weights(stack) for name, stack in fixed.items()
        }


def _is_latent(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and "event_dims" in site["infer"]


def _stack_values(traces: Iterable[poutine.Trace]) -> dict[str, Tensor]:
    nodes: list[dict[str, Any]] = [dict(trace.nodes) for trace in traces]
    draws = [{name: site["value"] for name, site in sites.items() if _is_latent(site)} for sites in nodes]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def _numbers(predictive: Sequence[dist.TorchDistribution]) -> tuple[Tensor, ...]:
    """The parameters that a prediction keeps, `(draws, items, …)` each."""
    first = predictive[0]
    if isinstance(first, dist.Categorical):
        return (torch.cat([p.logits for p in predictive]).cpu(),)
    if isinstance(first, dist.Normal):
        return torch.cat([p.loc for p in predictive]).cpu(), torch.cat([p.scale for p in predictive]).cpu()
    raise ValueError("predict knows classes and numbers; for text, score it with log_likelihood.")


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Joins batches along their items, `-inf` where one has fewer classes than another."""
    if parts[0].dim() == 2:
        return torch.cat(list(parts), dim=1)
    classes = max(part.shape[-1] for part in parts)
    padded = [torch.nn.functional.pad(p, (0, classes - p.shape[-1]), value=-torch.inf) for p in parts]
    return torch.cat(padded, dim=1)


def _mean_of(distribution: dist.TorchDistribution) -> Tensor:
    try:
        mean: Tensor = distribution.mean
    except NotImplementedError:
        mean = distribution.sample((MEAN_DRAWS,)).mean(0)
    return mean


@contextmanager
def _evaluating(model: BayesianLora) -> Iterator[None]:
    """Neither gradients, nor dropout, nor a trace in Pyro's store of parameters."""
    modules = {module: module.training for module in model.adapter.peft_model.modules()}
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), private_pyro():
            yield
    finally:
        for module, training in modules.items():
            module.training = training
