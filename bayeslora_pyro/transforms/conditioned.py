"""One flow for all LoRA factors of a stack, made different by a learned embedding of each."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.func import functional_call

from ..types import TransformFactory
from .copies import draw_copies
from .stacked import StackedTransform

__all__ = ["ConditionedTransform"]


class ConditionedTransform(StackedTransform):
    r"""L flows whose parameters a linear network makes from an embedding of each factor.

    .. math:: \theta_l = \theta + \sum_{k=1}^{K} e_{lk} B_k, \qquad y_{\ldots l i} = f_{\theta_l}(x_{\ldots l i})

    Theta and B are shared by all factors, so is the order of the coordinates; the embedding e_l is the factor's
    own. Any flow can be conditioned so, and it costs `(1 + K) |theta| + L K` parameters, not `L |theta|`. B starts
    at zero: all factors start with one flow, at the identity where it starts there.

    Args:
        factory: The flow, from the number of dimensions to a transform of vectors.
        num_factors: The number of factors L.
        dim: The number of dimensions of each row.
        embedding_dim: The size K of an embedding.
        seed: Where the first parameters, the order and the embeddings come from.
        vectorize: As in :class:`StackedTransform`.

    Raises:
        ValueError: As :class:`StackedTransform` does, or if `embedding_dim` is less than 1, or if the
            flow has no parameters.

    References:
        | HyperNetworks (Ha et al., 2016)
        | https://arxiv.org/abs/1609.09106
    """

    def __init__(
        self,
        factory: TransformFactory,
        num_factors: int,
        dim: int,
        *,
        embedding_dim: int = 4,
        seed: int = 0,
        vectorize: bool | None = None,
    ) -> None:
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}")
        super().__init__(factory, num_factors, dim, seed=seed, vectorize=vectorize)
        if not any(True for _ in self.copies.parameters()):
            raise ValueError(
                f"factory must make a flow with parameters, and {self.copies.transform} has none to condition: use "
                "StackedTransform"
            )
        embeddings = torch.randn(
            num_factors, embedding_dim, generator=torch.Generator().manual_seed(seed), device="cpu"
        )
        self.embeddings = nn.Parameter(embeddings)
        self.directions = nn.ParameterList(
            parameter.new_zeros(embedding_dim, *parameter.shape) for parameter in self.copies.parameters()
        )

    def _draw_transform(self, factory: TransformFactory, seed: int) -> Transform:
        (transform,) = draw_copies(factory, 1, self.dim, seed)
        return transform

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self.forward_shape(value.shape)
        return cast(tuple[Tensor, Tensor], functional_call(self.copies, self._state(), (value, inverse)))

    def _state(self) -> dict[str, Tensor]:
        """The parameters and buffers of all copies, by their names in one, each with the leading dimension L."""
        state = {
            name: buffer.expand(self.num_factors, *buffer.shape)
            for name, buffer in self.copies.named_buffers()
        }
        shared = self.copies.named_parameters()
        for (name, parameter), directions in zip(shared, self.directions, strict=True):
            state[name] = parameter + torch.tensordot(self.embeddings, directions, dims=1)
        return state
