r"""Training-free Bayesianization: noise for a trained LoRA, as much as its performance bears.

With the thin decomposition :math:`B = U \,\mathrm{diag}(d)\, V^\top` of each adapter, :math:`B' = U \,\mathrm{diag}(d)`
and :math:`A' = V^\top A` make the same update, and noise on A' of the standard deviations

.. math:: q(A'_{ij}) = \mathcal{N}\big(M_{ij}, (\sigma_q / d_i)^2\big), \quad M = V^\top A
    \qquad \Rightarrow \qquad B' A' = B A + \sigma_q\, U E, \quad E_{ij} \sim \mathcal{N}(0, 1)

is isotropic among the updates that the adapter can make. (LoRA multiplies the update, and so the noise, by its
scaling.) One number is left, :math:`\sigma_q`, the same for all adapters: the largest one found whose loss of
performance on an anchor set, of training items here, stays within a tolerance.

The published search returns the last value that it saw violate the tolerance; this one returns only what it saw hold.
It also counts the change of the NLL of the labels, not of the labels that the adapter itself predicts, and bisects
:math:`\log \sigma_q`.

| Training-Free Bayesianization for Low-Rank Adapters of Large Language Models (Shi et al., 2025), Section 3
| https://arxiv.org/abs/2412.05723
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.loading import first_batches
from bayeslora_pyro.methods import lora
from bayeslora_pyro.methods.recipe import Recipe
from bayeslora_pyro.metrics import accuracy, mean_log_probs
from bayeslora_pyro.models import Choice, Classification, GaussianPrior, Likelihood, NextToken, PointPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import Prediction
from bayeslora_pyro.types import Batch, FactorStack

__all__ = ["Bayesianize", "build", "largest_within", "rotate"]

SMALLEST = 1e-6
"""The smallest singular value that noise is divided by, relative to the largest of all adapters."""

NO_NOISE = 1e-30

OF_PROBABILITIES = (Classification, Choice, NextToken)
"""The likelihoods under which no item costs less than nothing, as it may under a density, which can exceed one."""


def build(
    peft_model: nn.Module,
    likelihood: Likelihood | str,
    num_data: int,
    *,
    seed: int = 0,
    tolerance: float | None = None,
    metric: Literal["nll", "accuracy"] = "nll",
) -> Recipe:
    """Builds TFB for a LoRA that the recipe fits first.

    A LoRA that is trained already needs no fit: :meth:`Recipe.finish_trained`.

    Args:
        peft_model: The PEFT model.
        likelihood: The likelihood, or its name.
        num_data: The number of training items.
        seed: The seed.
        tolerance: See :class:`Bayesianize`.
        metric: See :class:`Bayesianize`.
    """
    recipe = lora.build(peft_model, likelihood, num_data, seed=seed)
    return replace(recipe, num_draws=10, finish=Bayesianize(tolerance, metric, seed=seed))


@dataclass(frozen=True)
class Bayesianize:
    r"""Gives a fitted posterior, of which only the mean is used, the noise that its performance bears.

    Called with a posterior and a loader of labelled items, it returns a posterior whose factors A are independent
    normals and whose factors B are points. TFB has no prior; that of the model, a standard normal, only serves the
    report.

    Args:
        tolerance: The loss of performance that is borne: a share of the NLL, 0.003 by default, or a difference in
            accuracy, 0.01 by default.
        metric: What performance is: `"nll"`, of the predictive distribution, or `"accuracy"`.
        num_anchors: About how many items to measure it on.
        num_draws: The number of draws that predict, the same ones for every :math:`\sigma_q`.
        bounds: The smallest and the largest :math:`\sigma_q` that is tried.
        num_steps: The number of bisections.
        seed: The seed of the draws and of the anchor set.
    """

    tolerance: float | None = None
    metric: Literal["nll", "accuracy"] = "nll"
    num_anchors: int = 500
    num_draws: int = 10
    bounds: tuple[float, float] = (1e-4, 1.0)
    num_steps: int = 6
    seed: int = 0
    about: ClassVar[str] = "a search for the noise it bears"
    post_hoc: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.metric not in ("nll", "accuracy"):
            raise ValueError(f"metric should be 'nll' or 'accuracy', and is {self.metric!r}.")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance should be positive, and is {self.tolerance}.")
        if not 0 < self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds should be positive and in order, and are {self.bounds}.")

    def __call__(self, fitted: Posterior, loader: Iterable[Batch]) -> Posterior:
        """Searches for the noise, and returns the posterior with it.

        Args:
            fitted: The trained LoRA.
            loader: The labelled items to measure performance on, of which the first ones of a shuffled pass are used.

        Raises:
            ValueError: If the LoRA is not trained (all its factors B are zero), or even the smallest noise is too much.
        """
        anchors = first_batches(loader, self.seed, self.num_anchors)
        means, unit_scales = rotate(fitted.model.stacks, fitted.mean_adapter())
        noisy = _with_noise(fitted, means, self.seed)
        _set_noise(noisy, unit_scales, NO_NOISE)
        before = self._cost(noisy, anchors, num_draws=1)
        tolerance = (0.003 if self.metric == "nll" else 0.01) if self.tolerance is None else self.tolerance
        limit = before + tolerance * (abs(before) if self.metric == "nll" else 1.0)

        def holds(sigma: float) -> bool:
            _set_noise(noisy, unit_scales, sigma)
            return self._cost(noisy, anchors, self.num_draws, limit) <= limit

        sigma = largest_within(holds, *self.bounds, num_steps=self.num_steps)
        _set_noise(noisy, unit_scales, sigma)
        noisy.metadata["tfb"] = {"sigma": sigma, "metric": self.metric, "tolerance": tolerance}
        return noisy

    def _cost(
        self, posterior: Posterior, anchors: Sequence[Batch], num_draws: int, limit: float = math.inf
    ) -> float:
        """What should not grow: the NLL of an item in nats, or the share of wrong answers.

        Where no item costs less than nothing, it is left at the first batch that takes the sum above the limit.
        """
        likelihood = posterior.model.likelihood
        count, total = sum(likelihood.num_items(batch) for batch in anchors), 0.0
        for batch in anchors:
            total += self._cost_of_batch(posterior, batch, num_draws)
            if total > limit * count and isinstance(likelihood, OF_PROBABILITIES):
                break
        return total / count

    def _cost_of_batch(self, posterior: Posterior, batch: Batch, num_draws: int) -> float:
        if self.metric == "nll":
            scores = posterior.log_likelihood([batch], num_draws, self.seed).double()
            return -(scores.logsumexp(0) - math.log(num_draws)).sum().item()
        prediction = posterior.predict([batch], num_draws, self.seed)
        if not isinstance(prediction, Prediction) or prediction.labels is None:
            raise ValueError("metric='accuracy' needs labelled classes: give 'nll'.")
        share = float(accuracy(mean_log_probs(prediction.log_probs), prediction.labels))
        return (1 - share) * len(prediction.labels)


def largest_within(holds: Callable[[float], bool], low: float, high: float, *, num_steps: int = 6) -> float:
    """Bisects between two positive numbers, in their logarithm, for the largest one at which something holds.

    What is returned has been seen to hold, whether or not all smaller numbers do too.

    Args:
        holds: What should hold.
        low: The smallest number to try.
        high: The largest one.
        num_steps: The number of bisections; each halves the logarithm of `high / low`.

    Raises:
        ValueError: If it does not hold at any number that was tried, `low` among them.
    """
    if holds(high):
        return high
    found, below, above = None, low, high
    for _ in range(num_steps):
        middle = math.sqrt(below * above)
        if holds(middle):
            found = below = middle
        else:
            above = middle
    if found is None and not holds(low):
        raise ValueError(f"Not even noise of {low:g} stays within the tolerance: give a larger tolerance.")
    return low if found is None else found


def rotate(
    stacks: Sequence[FactorStack], weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""Turns the factors of each adapter so that the columns of B are orthogonal, leaving their product alone.

    Args:
        stacks: The stacks.
        weights: The factors by stack name. Shapes `(L, d_o, d_i)`.

    Returns:
        The factors :math:`A' = V^\top A` and :math:`B' = U \,\mathrm{diag}(d)` by stack name; and for the stacks of
        factors A, :math:`1 / d_i` for each of their rows, `(L, r, 1)`. Where a singular value is nearly zero, so that
        the row has no effect, it counts as a millionth of the largest.

    Raises:
        ValueError: If all factors B are zero.
    """
    factors = {
        (stack.role, name): factor.double()
        for stack in stacks
        for name, factor in zip(stack.adapters, weights[stack.name], strict=True)
    }
    sizes = {}
    for (role, name), factor in list(factors.items()):
        if role == "B":
            rank = factor.shape[1]
            tall = nn.functional.pad(
                factor, (0, 0, 0, max(0, rank - len(factor)))
            )  # so that there are r of all
            left, sizes[name], right = torch.linalg.svd(tall, full_matrices=False)
            factors["B", name] = (left * sizes[name])[: len(factor)]
            factors["A", name] = right @ factors["A", name]
    largest = max(float(size.max()) for size in sizes.values())
    if largest == 0:
        raise ValueError("All factors B are zero, as in a LoRA that is not trained: fit it first.")
    turned = {
        stack.name: torch.stack([factors[stack.role, name] for name in stack.adapters]).to(
            weights[stack.name]
        )
        for stack in stacks
    }
    unit_scales = {
        stack.name: torch.stack([1 / sizes[name].clamp(min=SMALLEST * largest) for name in stack.adapters])
        .unsqueeze(-1)
        .to(weights[stack.name])
        for stack in stacks
        if stack.role == "A"
    }
    return turned, unit_scales


def _with_noise(fitted: Posterior, means: Mapping[str, Tensor], seed: int) -> Posterior:
    """The posterior with these means, and some noise on the factors A; its head and likelihood are the fitted ones."""
    model = fitted.model.with_prior({"A": GaussianPrior(), "B": PointPrior()})
    guide = MeanFieldGuide(model, seed=seed)
    guide.from_lora(means)
    return Posterior(model, guide, history=fitted.history, metadata=fitted.metadata)


def _set_noise(posterior: Posterior, unit_scales: Mapping[str, Tensor], sigma: float) -> None:
    with torch.no_grad():
        for name, scale in unit_scales.items():
            posterior.guide.get_parameter(f"{name}.log_scale").copy_((sigma * scale).log())
