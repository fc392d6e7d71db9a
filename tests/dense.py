"""The conditional of the inducing model in the symbols of the paper, dense and one factor at a time."""

import torch
from torch.distributions import MultivariateNormal

from bayeslora_pyro.distributions import InducedNormal

from .exact import rand

# Batch shape, p, q, d_o, d_i. The noise has a branch for `d_o q <= p d_i` and one for the rest.
SHAPES = {
    "wide": ((), 2, 3, 3, 5),
    "tall": ((), 3, 2, 5, 3),
    "one": ((), 1, 1, 1, 1),
    "more rows than outputs": ((), 4, 3, 2, 6),
    "more columns than inputs": ((), 3, 4, 6, 2),
    "more of both": ((), 5, 4, 3, 2),
    "as many of both": ((), 3, 4, 3, 4),
    "a batch, wide": ((3,), 2, 2, 2, 5),
    "a batch, tall": ((3,), 2, 2, 5, 2),
    "a batch of batches": ((2, 2), 3, 2, 2, 3),
}


def symbols(name, nugget=0.4):
    batch, p, q, d_o, d_i = SHAPES[name]
    return {
        "latent": rand(*batch, p, q, seed=1),
        "z_row": rand(*batch, p, d_o, seed=2),
        "d_row": nugget * rand(*batch, p, seed=3).exp(),
        "z_col": rand(*batch, q, d_i, seed=4),
        "d_col": nugget * rand(*batch, q, seed=5).exp(),
        "noise_scale": rand(*batch, seed=6).sigmoid(),
        "scale": rand(*batch, seed=7).exp(),
    }


def make(name, **changes):
    return InducedNormal.from_locations(**(symbols(name) | changes))


def dense_side(z, d):
    """Computes `L`, `T = Z^T K^-1` and `P`, for one factor."""
    k = z @ z.mT + (d**2).diag_embed()
    return torch.linalg.cholesky(k), z.mT @ torch.linalg.inv(k), z.mT @ torch.linalg.solve(k, z)


def dense_moments(latent, z_row, d_row, z_col, d_col, noise_scale, scale):
    """The mean and the covariance of one flattened factor, in the symbols of the paper."""
    (l_row, t_row, p_row), (l_col, t_col, p_col) = dense_side(z_row, d_row), dense_side(z_col, d_col)
    mean = scale * t_row @ (l_row @ latent @ l_col.mT) @ t_col.mT
    explained = torch.kron(p_row, p_col)
    identity = torch.eye(len(explained), dtype=torch.float64)
    return mean.flatten(), (scale * noise_scale) ** 2 * (identity - explained)


def one_by_one(name, **changes):
    """The symbols of each factor of a batch."""
    batch, values = torch.Size(SHAPES[name][0]), symbols(name) | changes
    flat = {key: value.reshape(batch.numel(), *value.shape[len(batch) :]) for key, value in values.items()}
    return [{key: value[index] for key, value in flat.items()} for index in range(batch.numel())]


def dense(name, **changes):
    """The same distribution as one dense multivariate normal per factor."""
    return [MultivariateNormal(*dense_moments(**single)) for single in one_by_one(name, **changes)]
