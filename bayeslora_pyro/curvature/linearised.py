"""Predictions of a Gaussian posterior through the language model linearised at its mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from bayeslora_pyro.curvature.recording import Record, record
from bayeslora_pyro.curvature.structures import jacobian
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.kronecker_normal import KroneckerNormal
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.passes import Reader
from bayeslora_pyro.types import Batch, Weights, to_device

__all__ = [
    "Gaussians",
    "covariances",
    "derivatives",
    "draws_of",
    "linearised_batches",
    "score_moments",
    "spread",
]

BLOCK = 64
"""How many draws of the scores of an item are made at once."""

Gaussians: TypeAlias = dict[str, TorchDistribution]
"""The posterior of the factors of each stack that has one, by stack name."""


def linearised_batches(
    model: BayesianLora,
    gaussians: Gaussians,
    weights: Weights,
    batches: Iterable[Batch],
    num_draws: int,
    seed: int,
    predictive: str,
    read: Reader,
    drawn: Weights | None = None,
) -> list[tuple[Batch, tuple[Tensor, ...]]]:
    r"""Predicts batches through the model linearised at the mean, :math:`f(x) + J(x)(W - M)`.

    With :math:`W \sim q` its scores are Gaussian, :math:`\mathcal{N}(f, J \Sigma J^\top)`.

    Args:
        model: The model.
        gaussians: The posterior of the factors.
        weights: Its mean, and the factors that have no posterior. Shapes `(L, d_o, d_i)`.
        batches: What a collator yields.
        num_draws: The number of draws, for the predictives that draw.
        seed: The seed; the draws of an item depend on its place in the data, and not on its batch.
        predictive: One of `PREDICTIVES` but `"network"`. `"joint"` draws all scores of an item together,
            `"independent"` each by itself; `"probit"` and `"bridge"` are closed forms, one draw; `"weights"` takes
            the factors of `drawn`.
        read: What to keep.
        drawn: Draws of the factors, for `"weights"`. Shapes `(S, L, d_o, d_i)`.

    Raises:
        ValueError: If there is no batch, or the predictive does not fit the likelihood.
    """
    pairs, first = [], 0
    for batch in batches:
        here = to_device(batch, model.adapter.device)
        if drawn is not None:
            scores = _moved_scores(model, gaussians, weights, here, drawn)
        else:
            mean, second = score_moments(model, gaussians, weights, here)
            if predictive in CLOSED:
                _check_classes(model, predictive, mean, batch)
                scores = CLOSED[predictive](mean, second).unsqueeze(0)
            else:
                scores = mean + draws_of(second, num_draws, seed, first, joint=predictive == "joint")
        parts = read(model.likelihood.of_scores(scores, here), batch)
        pairs.append((batch, tuple(part.cpu() for part in parts)))
        first += scores.shape[-2]
    if not pairs:
        raise ValueError("batches is empty: give at least one batch.")
    return pairs


def score_moments(
    model: BayesianLora, gaussians: Gaussians, weights: Weights, batch: Batch
) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of the scores of a batch. Shapes `(items, C)` and `(items, C, C)`.

    The graph of the forward pass, which takes the most memory, is gone when they are had.
    """
    kept = record(model, weights, to_device(batch, model.adapter.device))
    return kept.scores.detach(), covariances(model, [gaussians], kept)[0]


def covariances(model: BayesianLora, several: Sequence[Gaussians], kept: Record) -> list[Tensor]:
    r"""The covariance of the scores, :math:`\Lambda = \sum_f J_f \Sigma_f J_f^\top`, under each of several posteriors.

    The gradients of the scores are pulled back once; the Jacobian by a factor is made and contracted one factor at a
    time.

    Args:
        model: The model.
        several: The posteriors, of the same stacks.
        kept: A forward pass.

    Returns:
        The covariances. Shapes `(items, C, C)`.
    """
    totals = [kept.scores.new_zeros(*kept.scores.shape, kept.scores.shape[-1]).detach() for _ in several]
    for name, place, derivative in derivatives(model, several[0], kept):
        spreads = spread([gaussians[name] for gaussians in several], place, derivative)
        for total, each in zip(totals, spreads, strict=True):
            total += each
    return totals


def derivatives(model: BayesianLora, gaussians: Gaussians, kept: Record) -> Iterator[tuple[str, int, Tensor]]:
    """Goes through the factors that have a posterior: the name of its stack, its place there, and its Jacobian.

    Shape of the last `(items, C, d_o, d_i)`.
    """
    identity = torch.eye(kept.scores.shape[-1], dtype=kept.scores.dtype, device=kept.scores.device)
    pulled = [kept.pull_back(row.expand_as(kept.scores)) for row in identity]
    index = 0
    for stack in model.stacks:
        for place in range(len(stack)):
            if stack.name in gaussians:
                by_score = torch.stack([jacobian(kept, each, index) for each in pulled], dim=1)
                yield stack.name, place, by_score
            index += 1


def spread(distributions: Sequence[Any], place: int, derivative: Tensor) -> Iterator[Tensor]:
    r"""What the noise of one factor does to the scores, :math:`J \Sigma J^\top`. Shape `(items, C, C)`.

    Posteriors that share their eigenvectors, such as those of one curvature with several precisions, share what it
    takes to turn the Jacobian into them, which is nearly all of the work.

    Args:
        distributions: The posteriors of the factors of a stack.
        place: The place of the factor.
        derivative: The Jacobian. Shape `(items, C, d_o, d_i)`.

    Yields:
        What each of the posteriors does.

    Raises:
        ValueError: If a posterior is no Gaussian that this can be said of.
    """
    turned: _Turned | None = None
    for q in distributions:
        if isinstance(q, KroneckerNormal):
            if turned is None or not turned.serves(q):
                turned = _Turned(q, place, derivative)
            yield turned.spread(q)
        elif isinstance(q, Independent) and isinstance(q.base_dist, Normal):
            yield _gram(derivative, derivative * q.variance[place])
        else:
            raise ValueError(
                "A linearised prediction needs a Gaussian with a known covariance, and this is a "
                f"{type(q).__name__}: predict with predictive='network'."
            )


class _Turned:
    """A Jacobian in the eigenvectors of a posterior, and what of it lies outside of them."""

    def __init__(self, q: KroneckerNormal, place: int, derivative: Tensor) -> None:
        self.vectors, self.place = (q.row_vectors, q.col_vectors), place
        self.within = q.row_vectors[place].mT @ derivative @ q.col_vectors[place]
        whole = self.within.shape == derivative.shape
        self.outside = None if whole else _gram(derivative, derivative) - _gram(self.within, self.within)

    def serves(self, q: KroneckerNormal) -> bool:
        """Whether another posterior has these very eigenvectors."""
        return q.row_vectors is self.vectors[0] and q.col_vectors is self.vectors[1]

    def spread(self, q: KroneckerNormal) -> Tensor:
        """Within the eigenvectors by their eigenvalues, and by the prior alone outside."""
        precision = q.precision.expand(q.batch_shape)[self.place]
        known = _gram(self.within, self.within / (precision + q.curvature[self.place]))
        return known if self.outside is None else known + self.outside / precision


def _gram(left: Tensor, right: Tensor) -> Tensor:
    return left.flatten(2) @ right.flatten(2).mT


def root_of(matrix: Tensor) -> Tensor:
    """A root of positive semi-definite matrices, whatever rounding has done to them. Shape `(..., C, C)`."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def probit(mean: Tensor, covariance_: Tensor) -> Tensor:
    r"""The multiclass probit approximation, :math:`f_i / \sqrt{1 + \pi \Lambda_{ii} / 8}`, as log-probabilities.

    Args:
        mean: The mean of the logits. Shape `(items, classes)`.
        covariance_: Their covariance. Shape `(items, classes, classes)`.

    References:
        | The Evidence Framework Applied to Classification Networks (MacKay, 1992), multiclass as in Laplace Redux
        | https://doi.org/10.1162/neco.1992.4.5.720
    """
    variance = covariance_.diagonal(dim1=-2, dim2=-1)
    return (mean / (1 + math.pi / 8 * variance).sqrt()).log_softmax(-1)


def bridge(mean: Tensor, covariance_: Tensor) -> Tensor:
    r"""The Laplace bridge: the mean of the Dirichlet that matches the Gaussian of the logits, as log-probabilities.

    .. math::
        \alpha_i = \frac{1}{\Lambda_{ii}} \Big(1 - \frac 2K + \frac{e^{f_i}}{K^2} \sum_j e^{-f_j}\Big)

    after logits and covariance were conditioned on the logits summing to zero, which no prediction depends on.

    Args:
        mean: The mean of the logits, `-inf` for what is no answer. Shape `(items, classes)`.
        covariance_: Their covariance. Shape `(items, classes, classes)`.

    References:
        | Fast Predictive Uncertainty for Classification with Bayesian Deep Networks (Hobbhahn et al., 2022)
        | https://arxiv.org/abs/2003.01227
    """
    known = mean.isfinite()
    count = known.sum(-1, keepdim=True)
    mean = mean.where(known, 0)
    towards = covariance_.sum(-1) / covariance_.sum((-2, -1)).clamp(
        min=torch.finfo(mean.dtype).tiny
    ).unsqueeze(-1)
    centred = mean - towards * mean.sum(-1, keepdim=True)
    variance = covariance_.diagonal(dim1=-2, dim2=-1) - towards * covariance_.sum(-1)
    # Where rounding leaves no variance at all there is nothing to spread: the smallest one stands for it.
    variance = variance.clamp(min=1e-12)
    other = (-centred).exp().where(known, 0).sum(-1, keepdim=True)
    alpha = ((1 - 2 / count + centred.exp() * other / count**2) / variance).where(known, 0)
    return (alpha / alpha.sum(-1, keepdim=True)).log()


CLOSED = {"probit": probit, "bridge": bridge}
"""The predictives that draw nothing."""


def _check_classes(model: BayesianLora, predictive: str, mean: Tensor, batch: Batch) -> None:
    if not isinstance(model.likelihood.of_scores(mean, batch), Categorical):
        raise ValueError(f"predictive={predictive!r} is about classes: predict numbers with 'joint'.")


def _moved_scores(
    model: BayesianLora, gaussians: Gaussians, weights: Weights, batch: Batch, drawn: Weights
) -> Tensor:
    """The scores with draws of the factors, to first order. Shape `(S, items, C)`."""
    kept = record(model, weights, batch)
    num_draws = len(next(iter(drawn.values())))
    total = kept.scores.new_zeros(num_draws, *kept.scores.shape).detach()
    for name, place, derivative in derivatives(model, gaussians, kept):
        step = drawn[name][:, place] - weights[name][place]
        total = total + torch.einsum("ncij,sij->snc", derivative, step)
    return kept.scores.detach() + total


def draws_of(covariance: Tensor, num_draws: int, seed: int, first: int, *, joint: bool = True) -> Tensor:
    """Draws scores about zero. Shape `(S, items, C)`.

    Args:
        covariance: Their covariance. Shape `(items, C, C)`.
        num_draws: The number of draws S.
        seed: The seed.
        first: The place of the first item in the data.
        joint: Whether those of an item are drawn together, or each by itself.
    """
    noise = torch.stack(
        [_noise(seed, first + n, num_draws, covariance) for n in range(len(covariance))], dim=1
    )
    if joint:
        return (root_of(covariance) @ noise.unsqueeze(-1)).squeeze(-1)
    return covariance.diagonal(dim1=-2, dim2=-1).sqrt() * noise


def _noise(seed: int, item: int, num_draws: int, like: Tensor) -> Tensor:
    """White noise for an item, `(S, C)`: that of draw s is a function of the seed, s and the item.

    Every second draw is the one before with its sign changed. Between two classes, the answer is then that of the mean
    for any even number of draws, as it is for infinitely many.
    """
    blocks = range(0, num_draws, 2 * BLOCK)  # of one size, as what torch draws depends on how much it draws
    with local_rng(seed, "scores", item):
        noise = torch.cat([torch.randn(BLOCK, like.shape[-1], dtype=like.dtype) for _ in blocks])
    return torch.stack([noise, -noise], dim=1).flatten(0, 1)[:num_draws].to(like.device)
