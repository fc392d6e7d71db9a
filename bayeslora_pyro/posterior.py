"""A fitted posterior: what is drawn from it, predicted with it, and kept of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from bayeslora_pyro import decoding, draws, folders, predicting
from bayeslora_pyro.adapters import compiled_blocks
from bayeslora_pyro.decoding import By
from bayeslora_pyro.generation import Generation, GenerationByDraw
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import evaluating
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.passes import numbers, prediction_of
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.prompts import Prompts
from bayeslora_pyro.traces import is_named, site_dims, stack_values, stack_weights
from bayeslora_pyro.types import Batch, FactorStack

__all__ = ["Posterior"]


class Posterior:
    r"""The approximate posterior of the LoRA factors, :math:`q(W)`, with the model it belongs to.

    Draw `s` under a seed is a function of that seed and `s` alone: the first four of sixteen draws are the draws of
    `num_draws=4`, however the draws are spread over forward passes. Draws come in opposite pairs: every second one is
    the one before, reflected about the mean, where the family is symmetric; see
    :func:`~bayeslora_pyro.opposite.drawing`.

    Args:
        model: The model.
        guide: The fitted guide.
        history: The history of the fit.
        metadata: What else is known of the fit; JSON values only.
        temperature: That of the mean adapter where predictions are centred on it; see :meth:`centred`.
    """

    def __init__(
        self,
        model: BayesianLora,
        guide: Guide,
        *,
        history: Sequence[Mapping[str, float]] = (),
        metadata: Mapping[str, Any] | None = None,
        temperature: float | None = None,
    ) -> None:
        if temperature is not None and not 0 < temperature < float("inf"):
            raise ValueError(f"temperature should be positive and finite, and is {temperature}.")
        self.model = model
        self.guide = guide
        self.history = [dict(row) for row in history]
        self.metadata = dict(metadata or {})
        self.temperature = temperature
        self.predictive = guide.predictive if temperature is None else "centred"

    @property
    def is_linearised(self) -> bool:
        """Whether its guide is about the model linearised at the mean, and not about the network itself."""
        return self.guide.predictive != "network"

    def predicting(self, predictive: str) -> Self:
        """The same posterior, predicting by default in another way, one of `PREDICTIVES`."""
        same = copy.copy(self)
        same.predictive = predictive
        return same

    def centred(self, batches: Iterable[Batch], num_draws: int = 8, seed: int = 0) -> Self:
        r"""The same posterior, its draws centred on the mean adapter and as confident as they are in the network.

        What noise does to the scores on average is a lower gain, which calibrates the draws, and a bias, for which
        the fit has made up on its own data only. Centred draws have the gain, as one temperature, without the bias;
        see :func:`~bayeslora_pyro.centring.centre`.

        Args:
            batches: Inputs, such as some of those trained on. Their labels are not looked at.
            num_draws: The number of draws to take the temperature from, even.
            seed: The seed of the draws.

        Raises:
            ValueError: If predictions are not of classes or choices, or the draws have no opposites.
        """
        temperature = predicting.temperature_of(self, batches, _count(num_draws), seed)
        return type(self)(
            self.model, self.guide, history=self.history, metadata=self.metadata, temperature=temperature
        )

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors."""
        return self.model.stacks

    @property
    def site_dims(self) -> dict[str, tuple[str, ...]]:
        """The names of the dimensions of each latent site, such as `("adapter", "inducing_row", "inducing_col")`."""
        with self._evaluating():
            sites = draws.guide_trace(self.guide, 0, 0).nodes
        return {name: site_dims(site) for name, site in sites.items() if is_named(site)}

    @property
    def is_text(self) -> bool:
        """Whether the observations are texts, which :meth:`log_likelihood` scores and :meth:`predict` does not know."""
        return self.model.likelihood.is_text

    @property
    def depends_on_items(self) -> bool:
        """Whether there are local sites: then the factors that an item sees depend on it, and no draw is one LoRA."""
        return any(self.model.prior_of(stack).local is not None for stack in self.stacks)

    def sample(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Draws the latent sites. Shapes `(draw, L, …)`, by site name."""
        with self._evaluating():
            return stack_values(
                draws.guide_trace(self.guide, seed, draw) for draw in range(_count(num_draws))
            )

    def sample_prior(self, num_draws: int, seed: int = 0) -> dict[str, Tensor]:
        """Draws the latent sites from the prior. Shapes `(draw, L, …)`, by site name."""
        with self._evaluating():
            return stack_values(
                draws.prior_trace(self.model, seed, draw) for draw in range(_count(num_draws))
            )

    def weights(self, num_draws: int, seed: int = 0, first: int = 0) -> dict[str, Tensor]:
        """Draws all factors. Shapes `(draw, L, d_o, d_i)`, by stack name.

        Noise that depends on the item is not among them: of such factors, a draw is the point that it is about.

        Args:
            num_draws: The number of draws.
            seed: The seed.
            first: The index of the first draw.
        """
        with self._evaluating():
            indices = range(first, first + _count(num_draws))
            each = (draws.guide_weights(self.model, self.guide, seed, index) for index in indices)
            return stack_weights(each, num_draws)

    def log_weights(self, num_draws: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The log-densities of the same draws under the prior and under the guide. Shapes `(draw,)`.

        That under the guide is nan where the guide has none, but points or noise that depends on the item.
        """
        rows = []
        with self._evaluating():
            for draw in range(_count(num_draws)):
                guide_trace = draws.guide_trace(self.guide, seed, draw)
                prior_trace = poutine.trace(
                    poutine.replay(self.model.sample_weights, trace=guide_trace)
                ).get_trace()
                pair = prior_trace.log_prob_sum(), guide_trace.log_prob_sum()
                rows.append(torch.stack([torch.as_tensor(log_prob) for log_prob in pair]))
            latent = [stack for stack in self.stacks if self.model.prior_of(stack).latent is not None]
            has_density = all(self.guide.has_density(stack) for stack in latent) and not self.depends_on_items
        log_p, log_q = torch.stack(rows, dim=-1).double()
        return log_p, log_q if has_density else torch.full_like(log_q, torch.nan)

    def predict(
        self,
        batches: Iterable[Batch],
        num_draws: int = 16,
        seed: int = 0,
        *,
        memory_budget: int | None = None,
        predictive: str | None = None,
    ) -> Prediction | RegressionPrediction:
        """Predicts each item of some batches with each of some draws.

        Args:
            batches: What a collator yields; items keep this order.
            num_draws: The number of draws.
            seed: The seed of the draws.
            memory_budget: About how many bytes the draws and the activations of a forward pass may take together. It
                decides how many draws share a pass, and whether they are held or made anew for each batch, never what
                comes out. By default all draws are held, and activations take what suits the device.
            predictive: What is drawn, by default what the guide says: weights, for the language model itself
                (`"network"`), the same `"centred"`, which is the default after :meth:`centred`, or what else
                `PREDICTIVES` has for the model linearised at the mean.
        """
        return prediction_of(
            predicting.drawn(self, batches, _count(num_draws), seed, memory_budget, numbers, predictive)
        )

    def compiled(self, **options: Any) -> AbstractContextManager[None]:
        """Has the blocks of the language model run compiled, by `torch.compile`, until the context is left.

        .. code-block:: python

            with posterior.compiled():
                prediction = posterior.predict(batches)

        Numbers are the same but for rounding. What runs first is compiled, which takes a minute or so, and serves all
        draws and, with a recent torch, all batches: it is for many batches, never for a few. Blocks before the first
        random factor, which run once for all draws, are left as they are.

        Args:
            options: What `torch.compile` takes, such as `backend` and `mode`; `dynamic` is True unless given.

        Raises:
            ValueError: If the language model has no list of blocks.
        """
        return compiled_blocks(self.model.adapter.peft_model, **options)

    def predict_prior(
        self,
        batches: Iterable[Batch],
        num_draws: int = 16,
        seed: int = 0,
        *,
        memory_budget: int | None = None,
    ) -> Prediction | RegressionPrediction:
        """Predicts each item of some batches with the draws of :meth:`sample_prior`; see :meth:`predict`."""
        return prediction_of(
            predicting.drawn_from_prior(self.model, batches, _count(num_draws), seed, memory_budget, numbers)
        )

    def generate(
        self,
        prompts: Prompts,
        num_draws: int = 8,
        seed: int = 0,
        *,
        by: By = "mixture",
        tokenizer: Any = None,
        memory_budget: int | None = None,
        **options: Any,
    ) -> Generation | GenerationByDraw:
        """Writes what comes after some prompts, with draws that are held fixed for whole texts.

        Args:
            prompts: Texts; or `input_ids` and `attention_mask`, `(prompt, token)`, padded on either side.
            num_draws: The number of draws, which are decoded in one batch.
            seed: The seed of the draws, and of the tokens that are sampled.
            by: `"mixture"` for one text of all draws, of the mean of what they expect next, with what is uncertain at
                each token; `"draw"` for a text of each, scored under all; `"mean"` for the text of the mean adapter.
            tokenizer: That of the base model; without it the tokens are the result.
            memory_budget: About how many bytes the activations of one pass may take when texts are scored.
            options: The fields of :class:`Decoding`: `max_new_tokens`, `temperature`, 0 for greedy, and `top_p`.

        Raises:
            ValueError: If the base model is no decoder, or the factors that an item sees depend on it.
        """
        how = decoding.Decoding(**options)
        with self._evaluating():
            return decoding.generate(self, prompts, num_draws, seed, how, by, tokenizer, memory_budget)

    def log_likelihood(
        self,
        batches: Iterable[Batch],
        num_draws: int = 16,
        seed: int = 0,
        *,
        memory_budget: int | None = None,
        predictive: str | None = None,
    ) -> Tensor:
        """The log-likelihood of each item under each draw of :meth:`predict`. Shape `(draw, item)`."""

        def score(predictive: dist.TorchDistribution, batch: Batch) -> tuple[Tensor, ...]:
            observed = self.model.likelihood.observed(batch)
            if observed is None:
                raise ValueError("batches have no labels: there is nothing to score.")
            return (predictive.log_prob(observed),)

        pairs = predicting.drawn(self, batches, _count(num_draws), seed, memory_budget, score, predictive)
        return torch.cat([scores for _, (scores,) in pairs], dim=-1)

    def mean_adapter(self) -> dict[str, Tensor]:
        r"""The posterior mean of each factor, :math:`\mathbb{E}_q W`. Shapes `(L, d_o, d_i)`, by stack name.

        Exact where the base family has a mean and there is no flow; through a flow, the average of 512 opposite pairs
        of draws of the latent site. Hyper-sites are independent of it under the guide, and A of B:
        `scaling · E[B] E[A]` is the mean of the update.
        """
        with self._evaluating():
            return draws.mean_weights(self.model, self.guide)

    def draws(self, num_draws: int, folder: str | Path, seed: int = 0) -> list[Path]:
        """Writes draws as ordinary PEFT folders, which any multi-LoRA server can load; all of them or none.

        They are draws of the weights: as a server runs them they are not centred.

        Args:
            num_draws: The number of draws.
            folder: Where the folders `draw-000`, `draw-001`, … go; draws that are there already are replaced.
            seed: The seed of the draws.

        Raises:
            ValueError: If the folder holds something else, or the factors that an item sees depend on it.
        """
        return folders.save_draws([self], Path(folder), _count(num_draws), seed)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that PEFT loads as the posterior mean, and :meth:`load` as the posterior itself.

        Args:
            folder: The folder. A posterior that is there already is replaced once the new one is complete.

        Raises:
            ValueError: If the folder holds something else.
        """
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
        about = {name: record[name] for name in ("history", "metadata")}
        return cls(model, guide, **about, temperature=record.get("temperature"))

    def _evaluating(self) -> AbstractContextManager[None]:
        return evaluating(self.model.adapter.peft_model, self.model, self.guide)


def _count(num_draws: int) -> int:
    if num_draws < 1:
        raise ValueError(f"num_draws should be at least 1, and is {num_draws}.")
    return num_draws
