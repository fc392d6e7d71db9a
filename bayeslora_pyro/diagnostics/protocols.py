"""What diagnostics asks of a posterior, and nothing more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from bayeslora_pyro.types import Batch, FactorStack

__all__ = ["LinearisedLike", "NumbersLike", "PosteriorLike", "PredictionLike", "PriorPredictiveLike"]


class PredictionLike(Protocol):
    """What a posterior predicts for a set of items."""

    @property
    def log_probs(self) -> Tensor:
        """The normalised log-probabilities, `(draw, item, class)`."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """The labels, `(item,)`, if the batches had any."""
        ...


@runtime_checkable
class NumbersLike(Protocol):
    """What a posterior predicts for a set of items with a number each: a normal distribution, draw by draw."""

    @property
    def loc(self) -> Tensor:
        """The means, `(draw, item)`."""
        ...

    @property
    def scale(self) -> Tensor:
        """The standard deviations of the noise, `(draw, item)`."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """The observed numbers, `(item,)`, if the batches had any."""
        ...


class PosteriorLike(Protocol):
    """What diagnostics asks of a posterior; draws of one seed are the same draws in every method."""

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The factor stacks, whose weights are the sites ``<stack>.W``."""
        ...

    @property
    def site_dims(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the dimensions of each latent site, without the draws."""
        ...

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        """The rows of the fit: ``step``, ``elbo`` and its parts."""
        ...

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Method, base model, ``num_data``, ``kl_weight``, seed and whatever else should be known."""
        ...

    def sample(self, num_draws: int, seed: int) -> Mapping[str, Tensor]:
        """Draw the latent sites from the guide, each `(draw, ...)`."""
        ...

    def sample_prior(self, num_draws: int, seed: int) -> Mapping[str, Tensor]:
        """Draw the latent sites from the prior, each `(draw, ...)`."""
        ...

    def log_weights(self, num_draws: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return the log-densities of the draws under the prior and under the guide, each `(draw,)`."""
        ...

    @property
    def is_text(self) -> bool:
        """Whether the observations are texts, which are scored and not predicted."""
        ...

    def predict(self, batches: Iterable[Batch], num_draws: int, seed: int) -> PredictionLike | NumbersLike:
        """Predict the items of the batches with each draw; not called for texts."""
        ...

    def log_likelihood(self, batches: Iterable[Batch], num_draws: int, seed: int) -> Tensor:
        """Return the log-likelihood of each item under each draw, `(draw, item)`; called for texts only."""
        ...


@runtime_checkable
class PriorPredictiveLike(Protocol):
    """A posterior that can also predict as if it had seen no data."""

    def predict_prior(
        self, batches: Iterable[Batch], num_draws: int, seed: int
    ) -> PredictionLike | NumbersLike:
        """Predict the items of the batches with each draw of ``sample_prior``."""
        ...


@runtime_checkable
class LinearisedLike(Protocol):
    """A posterior that may predict otherwise than by draws of weights in the language model itself."""

    predictive: str

    @property
    def is_linearised(self) -> bool:
        """Whether it is about a linearised model, whose scores can be drawn without weights."""
        ...

    def predicting(self, predictive: str) -> Any:
        """Return the same posterior, predicting in another way."""
        ...
