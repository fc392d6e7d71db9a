"""What a posterior predicts, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from bayeslora_pyro import metrics

__all__ = ["Prediction", "RegressionPrediction"]

COVERAGES = (50, 80, 90, 95)
"""The intervals whose coverage is evaluated, in per cent."""


@dataclass(frozen=True)
class Prediction:
    """Predicted classes, draw by draw.

    Args:
        log_probs: The log-probabilities of the classes. Shape `(draw, item, class)`.
        labels: The true classes, where the batches had them. Shape `(item,)`.
    """

    log_probs: Tensor
    labels: Tensor | None = None

    @property
    def probs(self) -> Tensor:
        """The predictive probabilities, averaged over draws. Shape `(item, class)`."""
        return metrics.mean_log_probs(self.log_probs).exp()

    @property
    def entropy(self) -> Tensor:
        """The total uncertainty: the entropy of the averaged probabilities, in nats. Shape `(item,)`."""
        return metrics.entropy(self.log_probs)

    @property
    def aleatoric(self) -> Tensor:
        """The part that more data would not take away: the mean entropy of the draws. Shape `(item,)`."""
        return metrics.aleatoric(self.log_probs)

    @property
    def epistemic(self) -> Tensor:
        """The mutual information of label and weights: total minus aleatoric. Shape `(item,)`."""
        return metrics.epistemic(self.log_probs)

    def evaluate(self) -> dict[str, float]:
        """Accuracy, NLL, Brier score, calibration errors and AURC against the labels."""
        if self.labels is None:
            raise ValueError("The batches had no labels to evaluate against.")
        return metrics.evaluate_log_probs(self.log_probs, self.labels)


@dataclass(frozen=True)
class RegressionPrediction:
    """Predicted normal distributions, draw by draw.

    Args:
        loc: The means. Shape `(draw, item)`.
        scale: The standard deviations of the noise. Shape `(draw, item)`.
        labels: The true values, where the batches had them. Shape `(item,)`.
    """

    loc: Tensor
    scale: Tensor
    labels: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The predictive mean. Shape `(item,)`."""
        return self.loc.mean(0)

    @property
    def aleatoric(self) -> Tensor:
        """The standard deviation of the noise. Shape `(item,)`."""
        return self.scale.square().mean(0).sqrt()

    @property
    def epistemic(self) -> Tensor:
        """The standard deviation of the means over draws. Shape `(item,)`."""
        return self.loc.std(0, unbiased=False)

    @property
    def stddev(self) -> Tensor:
        """The total predictive standard deviation. Shape `(item,)`."""
        return (self.aleatoric.square() + self.epistemic.square()).sqrt()

    def in_units(self, mean: float, deviation: float) -> RegressionPrediction:
        """The same prediction for targets that were standardised, in their own units.

        Args:
            mean: What was taken from the targets.
            deviation: What they were divided by.
        """
        labels = None if self.labels is None else self.labels.double() * deviation + mean
        return RegressionPrediction(self.loc * deviation + mean, self.scale * deviation, labels)

    def evaluate(self) -> dict[str, float]:
        """How close the means are, how well the intervals hold, and whether uncertainty follows the absolute error.

        Returns:
            ``rmse``, ``mae``, ``nll``, the coverages ``coverage_50``, ``coverage_80``, ``coverage_90`` and
            ``coverage_95``; ``spearman``, ``pearson`` and ``ause`` of the total standard deviation and the absolute
            error, ``spearman_epistemic`` and ``pearson_epistemic`` of the epistemic one; and ``n`` items.
        """
        if self.labels is None:
            raise ValueError("The batches had no labels to evaluate against.")
        parts = self.loc, self.scale, self.labels
        error = metrics.absolute_error(self.loc, self.labels)
        total, epistemic = metrics.predictive_std(self.loc, self.scale), self.epistemic
        return {
            "rmse": metrics.rmse(self.loc, self.labels),
            "mae": metrics.mae(self.loc, self.labels),
            "nll": metrics.gaussian_mixture_nll(*parts),
            **{f"coverage_{level}": metrics.interval_coverage(*parts, level / 100) for level in COVERAGES},
            "spearman": metrics.rank_correlation(total, error),
            "pearson": metrics.linear_correlation(total, error),
            "spearman_epistemic": metrics.rank_correlation(epistemic, error),
            "pearson_epistemic": metrics.linear_correlation(epistemic, error),
            "ause": metrics.ause(total, error) if error.any() else 0.0,
            "n": float(len(self.labels)),
        }
