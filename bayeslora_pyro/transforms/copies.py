"""L copies of a flow as one module, whose parameters and buffers are those of one copy, stacked."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform
from torch.func import functional_call, stack_module_state

from ..types import TransformFactory
from .composition import Inverse, parts_of
from .traits import Stackable, Vmappable

__all__ = ["Copies", "draw_copies", "stack_copies"]

ValueAndLogDet = tuple[Tensor, Tensor]


class Copies(nn.Module):
    """A flow as a pure function of parameters and value: what it would remember, it returns.

    A flow made of flows runs part by part, each in the fastest way that its traits allow: on stacked parameters as
    they are, under `torch.vmap`, or copy by copy.

    Args:
        transform: The flow.
        vectorize: Whether to run no part copy by copy, or every part; by default, as its traits say.
    """

    def __init__(self, transform: Transform, vectorize: bool | None) -> None:
        super().__init__()
        self.transform = transform
        self.vectorize = vectorize

    def forward(self, value: Tensor, inverse: bool) -> ValueAndLogDet:
        """Map `(..., L, rows, dim)`, with the log-dets `(..., L, rows)`, always of the forward map."""
        return self._run(self.transform, value, inverse)

    def _run(self, transform: Transform, value: Tensor, inverse: bool) -> ValueAndLogDet:
        if isinstance(transform, Inverse):
            value, ladj = self._run(transform.transform, value, not inverse)
            return value, -ladj
        if not isinstance(transform, ComposeTransform):
            return self._run_part(transform, value, inverse)
        total = value.new_zeros(())
        for part in reversed(transform.parts) if inverse else transform.parts:
            value, ladj = self._run(part, value, inverse)
            total = total + ladj
        return value, total

    def _run_part(self, part: Transform, value: Tensor, inverse: bool) -> ValueAndLogDet:
        single = _Single(part)
        state = {**dict(single.named_parameters()), **dict(single.named_buffers())}
        if not state or (isinstance(part, Stackable) and self.vectorize is not False):
            return cast(ValueAndLogDet, single(value, inverse))

        def run_one(state: dict[str, Tensor], rows: Tensor) -> ValueAndLogDet:
            return cast(ValueAndLogDet, functional_call(single, state, (rows, inverse)))

        if isinstance(part, Vmappable) if self.vectorize is None else self.vectorize:
            return torch.vmap(run_one, in_dims=(0, -3), out_dims=(-3, -2))(state, value)
        pairs = [
            run_one({name: tensor[factor] for name, tensor in state.items()}, rows)
            for factor, rows in enumerate(value.unbind(-3))
        ]
        values, ladjs = zip(*pairs, strict=True)
        return torch.stack(values, -3), torch.stack(ladjs, -2)


class _Single(nn.Module):
    """A simple flow as a function."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, value: Tensor, inverse: bool) -> ValueAndLogDet:
        mapped = cast(Tensor, self.transform.inv(value) if inverse else self.transform(value))
        ladj: Tensor = self.transform.log_abs_det_jacobian(*((mapped, value) if inverse else (value, mapped)))
        self._forget()
        return mapped, ladj.sum(-1) if self.transform.domain.event_dim == 0 else ladj

    def _forget(self) -> None:
        # Left alone, Pyro's caches would outlive `vmap` and the parameters that they belong to.
        for module in self.modules():
            cached = [name for name in vars(module) if name.startswith("_cache") and name != "_cache_size"]
            for name in cached:
                vars(module)[name] = (None, None) if name == "_cached_x_y" else None


def draw_copies(factory: TransformFactory, number: int, dim: int, seed: int) -> list[Transform]:
    """Make flows from one seed; on the CPU, so that they are the same wherever they go.

    Args:
        factory: The flow, from the number of dimensions to a transform of vectors.
        number: How many.
        dim: The number of dimensions.
        seed: Where their first parameters and orders come from.

    Raises:
        ValueError: If the flow is not one of vectors or keeps state elsewhere than in parameters and buffers.
    """
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the accelerators too
        transforms = [factory(dim) for _ in range(number)]
    _check(transforms[0])
    return transforms


def stack_copies(transforms: list[Transform]) -> Transform:
    """Make one flow of many: their parameters and buffers, stacked along a first dimension."""
    modules = [_Single(transform) for transform in transforms]
    parameters, buffers = stack_module_state(cast(list[nn.Module], modules))
    stacked = modules[0]
    for name, tensor in {**parameters, **buffers}.items():
        path, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensor.detach(), tensor.requires_grad) if name in parameters else tensor
        setattr(stacked.get_submodule(path), leaf, value)
    return stacked.transform


def _check(transform: Transform) -> None:
    """Refuse what cannot be stacked: flows of something else than vectors, and hidden state."""
    if transform.domain.event_dim > 1 or transform.codomain.event_dim > 1:
        raise ValueError(f"factory must make a transform of vectors, got {transform} with event_dim > 1")
    for part in (transform, *parts_of(transform)):
        state = [value for value in vars(part).values() if isinstance(value, Tensor | Transform | list)]
        if state and not isinstance(part, nn.Module):
            raise ValueError(
                f"factory must keep its state in parameters and buffers, but {part} is no nn.Module: use "
                "ComposeTransformModule for ComposeTransform, Permutation for Permute, Inverse for .inv"
            )
