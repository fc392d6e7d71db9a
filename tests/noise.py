"""Noise under control: the standard normal numbers that a program draws, replaced by given ones.

With it the moments of Gaussian programs are exact, with no Monte Carlo: an affine map of the noise is known from its
values at a basis, and the mean of a quadratic one from its values at the points of a cubature.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor

PLACES = (
    "torch.distributions.normal",
    "torch.distributions.multivariate_normal",
    "torch.distributions.lowrank_multivariate_normal",
    "bayeslora_pyro.distributions",
    "bayeslora_pyro.matrix_normal",
)


@contextmanager
def drawn_from(values: Tensor) -> Iterator[list[int]]:
    """Has all standard normal draws take these numbers, one after the other, and zeros after the last.

    Yields:
        A list with the number of draws so far.
    """
    count = [0]

    def draw(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        size = torch.Size(shape).numel()
        given = values[count[0] : count[0] + size].to(dtype)
        count[0] += size
        return torch.cat([given, given.new_zeros(size - len(given))]).reshape(shape)

    with ExitStack() as stack:
        for place in PLACES:
            stack.enter_context(mock.patch(f"{place}._standard_normal", draw))
        yield count


def num_draws(program: Callable[[], object]) -> int:
    """Counts the standard normal numbers that a program draws."""
    with drawn_from(torch.zeros(0)) as count:
        program()
    return count[0]


def affine(program: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Finds `c` and `M` of a program whose value is `c + M e`, with `e` the noise.

    Returns:
        The vector `c` and the matrix `M` of the flattened value: its mean, and a root of its covariance.
    """
    with drawn_from(torch.zeros(0)):
        centre = program().detach().flatten()
    columns = []
    for unit in torch.eye(num_draws(program), dtype=torch.float64):
        with drawn_from(unit):
            columns.append(program().detach().flatten() - centre)
    return centre, torch.stack(columns, -1) if columns else centre.new_zeros(len(centre), 0)


def expectation(program: Callable[[], Tensor]) -> Tensor:
    r"""Computes the mean of a program whose value is a polynomial of degree three, or less, in the noise.

    It is the mean over the :math:`2n` points :math:`\pm\sqrt{n} e_i`, exactly.
    """
    size = num_draws(program)
    values = [] if size else [program().detach()]
    for unit in torch.eye(size, dtype=torch.float64):
        for sign in (1.0, -1.0):
            with drawn_from(sign * size**0.5 * unit):
                values.append(program().detach())
    return torch.stack(values).mean(0)
