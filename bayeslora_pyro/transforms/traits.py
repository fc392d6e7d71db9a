"""What a flow says of itself, so that a stack of its copies knows how to run it."""

from __future__ import annotations

__all__ = ["OneWay", "Stackable", "Vmappable"]


class Vmappable:
    """Marks a flow that `torch.vmap` can run. Flows without a mark run copy by copy."""


class Stackable:
    """Marks a flow that also takes the parameters of L copies at once.

    Its parameters and buffers may then have a leading dimension L, and its values are `(..., L, rows, dim)`.
    """


class OneWay:
    """Marks a flow without an inverse in closed form: the density is known for its own draws only."""
