"""The plate of draws that share a batch, and that of what each item of a batch has for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.poutine as poutine
import torch

__all__ = ["draws_plate", "items_plate"]


@contextmanager
def draws_plate(num_draws: int) -> Iterator[None]:
    r"""Draws the sites within S times, in a plate at dimension -2, each of them counted as one S-th.

    The expected log-likelihood of a batch is a sum over items, so each item may see a draw of its own,

    .. math:: \sum_n \mathbb{E}_q \log p(y_n \mid x_n, W) =
        \mathbb{E}_{W_1, \dots, W_S \sim q} \sum_n \log p(y_n \mid x_n, W_{s(n)}),
        \qquad \mathrm{KL} = \frac{1}{S} \sum_s \mathrm{KL}

    The language model does the work of one draw, and the estimate stays unbiased. Where the gradients of the items
    agree, the part of their variance that comes from one draw for all is divided by S; where they do not, as of items
    that pull apart, the variance may also rise.

    Args:
        num_draws: The number of draws S; with 1 there is no plate.
    """
    if num_draws == 1:
        yield
        return
    with poutine.scale(scale=1 / num_draws), pyro.plate("draws", num_draws, dim=-2):
        yield


@contextmanager
def items_plate(num_items: int, num_data: int) -> Iterator[None]:
    """Draws the sites within for each item of a batch, at dimension -1, scaled to the whole data as its likelihood is.

    Args:
        num_items: The number of items of the batch.
        num_data: The number of items of the data.
    """
    with pyro.plate("items", num_data, subsample=torch.arange(num_items), dim=-1):
        yield
