"""Independent copies of a flow, one per LoRA factor, run as one transform."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Transform, constraints
from torch.func import functional_call, stack_module_state

from ..types import TransformFactory
from .autoregressive import AffineAutoregressive, NeuralAutoregressive
from .composition import Inverse, Permutation
from .coupling import AffineCoupling, SplineCoupling
from .residual import Sylvester

__all__ = ["StackedTransform"]

# Flows that take stacked parameters as they are; flows that `torch.vmap` can run; flows without an inverse.
_BATCHED = (AffineAutoregressive, AffineCoupling, NeuralAutoregressive, Permutation, SplineCoupling)
_VMAPPED = (*_BATCHED, Sylvester, pyro_transforms.Planar, pyro_transforms.Radial)
_ONE_WAY = (NeuralAutoregressive, Sylvester, pyro_transforms.Planar, pyro_transforms.Radial)


class StackedTransform(TransformModule):
    r"""L independent copies of a flow, one per factor, as one transform.

    .. math:: y_{\ldots l i} = f_l(x_{\ldots l i}), \qquad l = 1 \ldots L, \quad i = 1 \ldots \text{rows}

    Values have shape `(..., L, rows, dim)`, log-dets `(..., L, rows)`: all rows of a factor go through one
    flow, and no two factors share a parameter. Parameters and buffers (masks, orders) are those of one copy
    with a leading dimension L: optimizers and checkpoints see ordinary tensors, and a stack that loads the
    state of another becomes that other, whatever its seed was.

    Like Pyro's transforms, it remembers the last value with its log-det, so that the density of one's own
    draw costs no second pass. A draw made without gradients is scored without them. Changing
    a parameter in place makes it forget.

    Args:
        factory: The flow, from the number of dimensions to a transform of vectors.
        num_factors: The number of copies L.
        dim: The number of dimensions of each row.
        seed: Where the first parameters and orders of the copies come from; the global generator stays as it
            was.
        vectorize: Whether all copies run at once, in batched kernels or under `torch.vmap`, and not one by
            one. The numbers are the same. By default, where the flow is known to allow it.

    Raises:
        ValueError: If `num_factors` is less than 1, or if the flow is not one of vectors or keeps state
            elsewhere than in parameters and buffers.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    _cached_ladj: Tensor

    def __init__(
        self,
        factory: TransformFactory,
        num_factors: int,
        dim: int,
        *,
        seed: int = 0,
        vectorize: bool | None = None,
    ) -> None:
        super().__init__(cache_size=1)
        if num_factors < 1:
            raise ValueError(f"num_factors must be at least 1, got {num_factors}: leave empty stacks out")
        self.num_factors = num_factors
        self.dim = dim
        self.copies = _stack(_draw(factory, num_factors, dim, seed))
        parts = list(_parts(self.copies.transform))
        self.invertible = not any(isinstance(part, _ONE_WAY) for part in parts)
        self.vectorize = all(isinstance(part, _VMAPPED) for part in parts) if vectorize is None else vectorize
        self._batched = all(isinstance(part, _BATCHED) for part in parts)
        self._cached_versions: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Map `(..., L, rows, dim)` to the same shape."""
        self._forget_if_changed()
        return cast(Tensor, super().__call__(x))

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_if_changed()
        return cast(Tensor, super()._inv_call(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x, by row: `(..., L, rows)`."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Check that a shape is `(..., L, rows, dim)`, and return it."""
        if len(shape) < 3 or shape[-3] != self.num_factors or shape[-1] != self.dim:
            raise ValueError(
                f"the value must have shape (..., {self.num_factors}, rows, {self.dim}), got {tuple(shape)}: "
                "put the factors third from last, as the last batch dimension"
            )
        return shape

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Check that a shape is `(..., L, rows, dim)`, and return it."""
        return self.forward_shape(shape)

    def _call(self, x: Tensor) -> Tensor:
        y, self._cached_ladj = self._run(x, inverse=False)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        if not self.invertible:
            raise NotImplementedError(
                f"{self.copies.transform} has no inverse, so only its latest draw can be scored: "
                "score each draw before the next, or use a flow such as 'affine_autoregressive'"
            )
        x, self._cached_ladj = self._run(y, inverse=True)
        return x

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map a value through all copies, with the log-det, always of the forward map."""
        self.forward_shape(value.shape)
        if self.vectorize and self._batched:
            return cast(tuple[Tensor, Tensor], self.copies(value, inverse))
        state = {**dict(self.copies.named_parameters()), **dict(self.copies.named_buffers())}

        def run_one(state: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor]:
            return cast(tuple[Tensor, Tensor], functional_call(self.copies, state, (rows, inverse)))

        if self.vectorize:
            vmapped = torch.vmap(run_one, in_dims=(0, -3), out_dims=(-3, -2))
            return vmapped(state, value)
        pairs = [
            run_one({name: tensor[factor] for name, tensor in state.items()}, rows)
            for factor, rows in enumerate(value.unbind(-3))
        ]
        values, ladjs = zip(*pairs, strict=True)
        return torch.stack(values, -3), torch.stack(ladjs, -2)

    def _forget_if_changed(self) -> None:
        # An optimizer step or a loaded checkpoint raises the version of the tensors it writes to.
        versions = tuple(parameter._version for parameter in self.parameters())
        if versions != self._cached_versions:
            self._cached_x_y = None, None
            self._cached_versions = versions

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered holds a graph, which can be neither copied nor saved.
        state = {**super().__getstate__(), "_cached_x_y": (None, None)}
        state.pop("_cached_ladj", None)
        return state


class _ValueAndLogDet(nn.Module):
    """A flow as a pure function of parameters and value: what it would remember, it returns."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
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


def _draw(factory: TransformFactory, num_factors: int, dim: int, seed: int) -> list[_ValueAndLogDet]:
    """Make the copies from one seed; on the CPU, so that they are the same wherever they go."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed the accelerators too
        transforms = [factory(dim) for _ in range(num_factors)]
    _check(transforms[0])
    return [_ValueAndLogDet(transform) for transform in transforms]


def _stack(copies: list[_ValueAndLogDet]) -> _ValueAndLogDet:
    """Make one module of many: their parameters and buffers, stacked along a first dimension."""
    parameters, buffers = stack_module_state(list(copies))
    stacked = copies[0]
    for name, tensor in {**parameters, **buffers}.items():
        path, _, leaf = name.rpartition(".")
        value = nn.Parameter(tensor.detach(), tensor.requires_grad) if name in parameters else tensor
        setattr(stacked.get_submodule(path), leaf, value)
    return stacked


def _parts(transform: Transform) -> Iterator[Transform]:
    """List the flows that a flow is made of."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from _parts(part)
    elif isinstance(transform, Inverse):
        yield from _parts(transform.transform)
    else:
        yield transform


def _check(transform: Transform) -> None:
    """Refuse what cannot be stacked: flows of something else than vectors, and hidden state."""
    if transform.domain.event_dim > 1 or transform.codomain.event_dim > 1:
        raise ValueError(f"factory must make a transform of vectors, got {transform} with event_dim > 1")
    for part in (transform, *_parts(transform)):
        state = [value for value in vars(part).values() if isinstance(value, Tensor | Transform | list)]
        if state and not isinstance(part, nn.Module):
            raise ValueError(
                f"factory must keep its state in parameters and buffers, but {part} is no nn.Module: use "
                "ComposeTransformModule for ComposeTransform, Permutation for Permute, Inverse for .inv"
            )
