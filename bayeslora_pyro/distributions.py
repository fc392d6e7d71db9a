"""The conditional distribution of a matrix given its inducing variables, as a Pyro distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl
from torch.distributions.utils import _standard_normal

from bayeslora_pyro.linalg import InducingMap

__all__ = ["InducedNormal"]


class InducedNormal(TorchDistribution):
    r"""The distribution of a matrix :math:`W` given its whitened inducing matrix :math:`V`.

    .. math::
        W \mid V \sim \mathcal{N}\big(\sigma R_r^\top V R_c,\; \sigma^2 \lambda^2 (I - P_r \otimes P_c)\big),
        \qquad P_\bullet = R_\bullet^\top R_\bullet

    With :math:`\lambda = 1` it is the conditional of the prior, and :math:`W` has the marginal
    :math:`\mathcal{N}(0, \sigma^2 I)` if :math:`V \sim \mathcal{N}(0, I)`. It is sampled by Matheron's rule:
    a white matrix, minus what its own inducing variables explain of it.

    Args:
        latent: The whitened inducing matrix :math:`V`. Shape `(..., p, q)`.
        rows: The map of the rows. :math:`R_r` has shape `(..., p, d_o)`.
        cols: The map of the columns. :math:`R_c` has shape `(..., q, d_i)`.
        noise_scale: The factor :math:`\lambda` of the conditional noise. Shape `(...)`.
        scale: The scale :math:`\sigma` of each entry of :math:`W`. Shape `(...)`.

    References:
        | Bayesian-LoRA (Lin et al., 2026), Sections 3 and 4
        | https://arxiv.org/abs/2601.21003
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore
    support = constraints.independent(constraints.real, 2)  # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        latent: Tensor,
        rows: InducingMap,
        cols: InducingMap,
        noise_scale: Tensor | float = 1.0,
        scale: Tensor | float = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        if latent.shape[-2:] != (rows.rank, cols.rank):
            raise ValueError(
                f"latent has shape {tuple(latent.shape)}, but rows and cols are maps of {rows.rank} and {cols.rank} "
                f"inducing variables: its last two dimensions should be ({rows.rank}, {cols.rank})."
            )
        self.latent = latent
        self.rows = rows
        self.cols = cols
        self.noise_scale = torch.as_tensor(noise_scale, dtype=latent.dtype, device=latent.device)
        self.scale = torch.as_tensor(scale, dtype=latent.dtype, device=latent.device)
        batch_shape = torch.broadcast_shapes(
            latent.shape[:-2], rows.batch_shape, cols.batch_shape, self.noise_scale.shape, self.scale.shape
        )
        super().__init__(batch_shape, torch.Size((rows.size, cols.size)), validate_args=validate_args)

    @classmethod
    def from_locations(
        cls,
        latent: Tensor,
        z_row: Tensor,
        d_row: Tensor,
        z_col: Tensor,
        d_col: Tensor,
        noise_scale: Tensor | float = 1.0,
        scale: Tensor | float = 1.0,
    ) -> InducedNormal:
        r"""Builds the distribution from the symbols of the paper.

        Args:
            latent: The whitened inducing matrix :math:`V`, with :math:`U = L_r V L_c^\top`. Shape `(..., p, q)`.
            z_row: The inducing locations :math:`Z_r` of the rows. Shape `(..., p, d_o)`.
            d_row: The nuggets :math:`D_r` of the rows, standard deviations. Shape `(..., p)`.
            z_col: The inducing locations :math:`Z_c` of the columns. Shape `(..., q, d_i)`.
            d_col: The nuggets :math:`D_c` of the columns, standard deviations. Shape `(..., q)`.
            noise_scale: The factor :math:`\lambda`. Shape `(...)`.
            scale: The scale :math:`\sigma_w`. Shape `(...)`.
        """
        return cls(latent, InducingMap(z_row, d_row), InducingMap(z_col, d_col), noise_scale, scale)

    def expand(self, batch_shape: Any, _instance: InducedNormal | None = None) -> InducedNormal:
        """Broadcasts the batch shape; the parameters stay as they are and broadcast when used."""
        new: InducedNormal = self._get_checked_instance(InducedNormal, _instance)  # type: ignore[no-untyped-call]
        for name in ("latent", "rows", "cols", "noise_scale", "scale"):
            setattr(new, name, getattr(self, name))
        super(InducedNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws matrices by Matheron's rule. Shape `(*sample_shape, *batch_shape, d_o, d_i)`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        white, inducing = self._white_noise(shape)
        noise_scale = self.noise_scale[..., None, None]
        core = self.latent - noise_scale * inducing
        scale = self.scale[..., None, None]
        return self._lift(core * scale).add(white * (noise_scale * scale))

    def _white_noise(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        r"""Draws a white matrix :math:`E_0` and the inducing matrix :math:`Q_r E Q_c^\top` that belongs to it.

        The white matrix :math:`E` of shape `(d_o + p, d_i + q)` has :math:`E_0` in its corner. Its rows beyond `d_o`
        only ever appear through the orthonormal :math:`Q_c`, hence as a white `(p, q)` matrix, which is drawn in
        their place; or the same with rows and columns exchanged, whichever draws fewer numbers.
        """
        (d_o, d_i), p, q = self.event_shape, self.rows.rank, self.cols.rank
        dtype, device = self.latent.dtype, self.latent.device
        core = _standard_normal((*shape, p, q), dtype, device)
        if d_o * q <= p * d_i:
            border = _standard_normal((*shape, d_o, d_i + q), dtype, device)
            inducing = self.rows.matrix @ torch.cat([border @ self.cols.matrix.mT, core], dim=-2)
            return border[..., :d_i], inducing
        border = _standard_normal((*shape, d_o + p, d_i), dtype, device)
        inducing = torch.cat([self.rows.matrix @ border, core], dim=-1) @ self.cols.matrix.mT
        return border[..., :d_o, :], inducing

    def _lift(self, core: Tensor) -> Tensor:
        r"""Computes :math:`R_r^\top C R_c`."""
        return self.rows.signal.mT @ (core @ self.cols.signal)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Computes the exact log-density.

        With :math:`X = (W - \mathbb{E} W) / \lambda \sigma`, :math:`Y = R_r X R_c^\top`,
        :math:`G_\bullet = R_\bullet R_\bullet^\top` and :math:`M = I - G_r \otimes G_c`,

        .. math::
            \log p = -\tfrac12 \big(\|X\|^2 + \mathrm{vec}(Y)^\top M^{-1} \mathrm{vec}(Y) + \log\det M
            + d_o d_i \log 2\pi\lambda^2\sigma^2\big)

        Args:
            value: The matrices. Shape `(..., d_o, d_i)`.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_scale = (self.noise_scale * self.scale).log()
        residual = (value - self.mean) / log_scale.exp()[..., None, None]
        projected = self.rows.signal @ residual @ self.cols.signal.mT
        cholesky = torch.linalg.cholesky(self._explained_complement())
        vector = projected.flatten(-2).double().unsqueeze(-1)
        solved = torch.linalg.solve_triangular(cholesky, vector, upper=False)
        quadratic = residual.square().sum((-2, -1)) + solved.square().sum((-2, -1)).to(value.dtype)
        log_det = 2 * cholesky.diagonal(dim1=-2, dim2=-1).log().sum(-1).to(value.dtype)
        size = self.event_shape.numel()
        return -0.5 * (quadratic + log_det + size * math.log(2 * math.pi)) - size * log_scale

    def _explained_complement(self) -> Tensor:
        r"""Computes :math:`M = I - G_r \otimes G_c` in float64, from the nuggets: no difference of near equals.

        :math:`G = I - N` with :math:`N = S S^\top`, so :math:`M = N_r \otimes I + G_r \otimes N_c`, a sum of two
        positive semi-definite matrices.
        """
        noise_rows, noise_cols = (m.noise.double() @ m.noise.double().mT for m in (self.rows, self.cols))
        gram_rows = self.rows.signal.double() @ self.rows.signal.double().mT
        identity = torch.eye(self.cols.rank, dtype=torch.float64, device=noise_cols.device)
        return _kron(noise_rows, identity) + _kron(gram_rows, noise_cols)

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`\sigma R_r^\top V R_c`. Shape `(*batch_shape, d_o, d_i)`."""
        return self._lift(self.latent * self.scale[..., None, None]).expand(
            self.batch_shape + self.event_shape
        )

    @property
    def variance(self) -> Tensor:
        r"""The variance of each entry, :math:`\sigma^2 \lambda^2 (1 - \mathrm{diag} P_r \, \mathrm{diag} P_c^\top)`."""
        explained = torch.einsum(
            "...i,...j->...ij", self.rows.signal.square().sum(-2), self.cols.signal.square().sum(-2)
        )
        scale = (self.noise_scale * self.scale).square()[..., None, None]
        return (scale * (1 - explained)).expand(self.batch_shape + self.event_shape)


def _kron(left: Tensor, right: Tensor) -> Tensor:
    """Computes batched Kronecker products."""
    (a, b), (c, d) = left.shape[-2:], right.shape[-2:]
    return torch.einsum("...ij,...kl->...ikjl", left, right).reshape(*_batch(left, right), a * c, b * d)


def _batch(left: Tensor, right: Tensor) -> torch.Size:
    return torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])


@register_kl(InducedNormal, InducedNormal)  # type: ignore[untyped-decorator]
def _kl_induced_normal(q: InducedNormal, p: InducedNormal) -> Tensor:
    r"""Computes :math:`d_o d_i (\rho^2/2 - \log\rho - 1/2)`, :math:`\rho = \lambda_q / \lambda_p`.

    It holds for two conditionals of one inducing model, given one and the same inducing matrix; any other pair has no
    cheap closed form, and the caller falls back on sampling.

    References:
        | Bayesian-LoRA (Lin et al., 2026), Equation of the conditional KL
        | https://arxiv.org/abs/2601.21003
    """
    same_maps = q.rows.same_as(p.rows) and q.cols.same_as(p.cols)
    # An unwhitened inducing matrix is whitened once for each side: the same numbers in two tensors.
    same_latent = q.latent is p.latent or torch.equal(q.latent, p.latent)
    if not same_latent or not same_maps or not torch.equal(q.scale, p.scale):
        raise NotImplementedError("The two conditionals differ in more than their noise.")
    ratio = q.noise_scale / p.noise_scale
    kl = q.event_shape.numel() * (ratio.square() / 2 - ratio.log() - 0.5)
    return kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
