"""What a prior is: the generative side of a LoRA factor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.adapters import Noise, Operator
from bayeslora_pyro.types import WEIGHT_DIMS, FactorStack, Weights, named_dims

__all__ = ["LatentPrior", "Prior"]


class Prior(AbstractPyroModule):
    r"""The prior of the LoRA factors of a model.

    A prior is written as a Pyro model of one stack, :meth:`sample_weights`, which runs inside the plate of the stack.
    What a guide approximates is its *latent* site, named :attr:`latent`: the weights themselves, a smaller matrix
    on which the weights depend by :meth:`conditional`, or one that determines them by :meth:`lift`.

    Above the latent site there may be further ones: *hyper-sites*, some for each factor, inside the plate
    (:meth:`hyper_priors`), and *shared* sites, outside all plates (:meth:`shared_priors`). Guides approximate them
    entry by entry, whatever their family is for the latent site.

    Below it there may be a *local* site, named :attr:`local`, which every item of the data has for itself
    (:meth:`local_prior`), and which says how the factors are applied to its activations (:meth:`local_operators`).

    A prior is created without knowing a PEFT model. :class:`~bayeslora_pyro.BayesianLora` copies it and calls
    :meth:`setup`, so that one object may serve several models.
    """

    name: str = "AB"
    """The name of the prior within its model, the prefix of its shared sites."""

    latent: str | None = "W"
    """The name of the site that a guide approximates; None for a prior without random variables."""

    local: str | None = None
    """The name of the site that every item of the data has for each stack; None for none."""

    latent_dims: tuple[str, str] = WEIGHT_DIMS
    """The names of the dimensions of the latent site."""

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The names of the dimensions of each hyper-site and shared site."""

    @property
    def is_random(self) -> bool:
        """Whether there is a latent or a local site."""
        return self.latent is not None or self.local is not None

    @abstractmethod
    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Makes the parameters of the prior.

        Args:
            stacks: The stacks that this prior is for.
            initial: The factors of the PEFT model, `(L, d_o, d_i)` each.
            generator: The only source of random numbers.
        """

    @abstractmethod
    def sample_weights(self, stack: FactorStack, **shared: Tensor) -> Tensor:
        """Samples the factors of a stack, in Pyro sites within its plate. Shape `(..., L, d_o, d_i)`.

        Args:
            stack: The stack.
            shared: The values of the shared sites, by name; nothing where there are none.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""

    def shared_priors(self) -> Mapping[str, TorchDistribution]:
        """The sites that all stacks of this prior share, by name, real-valued or positive. Batch shape `()`."""
        return {}

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        """The hyper-sites of each factor, by name, real-valued or positive. Batch shape `()` or `(L,)`."""
        return {}

    def conditional(
        self, stack: FactorStack, latent: Tensor, noise_scale: Tensor | float = 1.0, **hyper: Tensor
    ) -> TorchDistribution | None:
        """The distribution of the weights given the latent site, its noise scaled; None if it determines them.

        Args:
            stack: The stack.
            latent: The value of the latent site. Shape `(..., L, rows, cols)`.
            noise_scale: The factor of the noise. Shape `(L,)`.
            hyper: The values of the hyper-sites, by name; their medians where they are left out.
        """
        return None

    def lift(self, stack: FactorStack, latent: Tensor) -> Tensor:
        """The weights that the latent site determines, where there is no conditional: a linear map of it.

        Args:
            stack: The stack.
            latent: The value of the latent site. Shape `(..., L, rows, cols)`.

        Returns:
            The weights, the latent site itself by default. Shape `(..., L, d_o, d_i)`.
        """
        return latent

    def local_prior(self, stack: FactorStack) -> TorchDistribution:
        """The distribution of the local site, where there is one. Batch shape `()`, event shape `(L, …)`."""
        raise NotImplementedError(f"{type(self).__name__} has no local site.")

    def initial_local(self, stack: FactorStack) -> TorchDistribution:
        """What the local site is under a guide that knows nothing of the items. Event shape `(L, …)`."""
        raise NotImplementedError(f"{type(self).__name__} has no local site.")

    def local_operators(
        self, stack: FactorStack, weights: Tensor, local: Tensor, noise: Noise
    ) -> Sequence[Operator]:
        """What applies the factors to activations, given the local site, where there is one.

        Args:
            stack: The stack.
            weights: The factors. Shape `(L, d_o, d_i)`, or `(S, L, d_o, d_i)` for S tiles.
            local: The value of the local site for each row of all tiles. Shape `(rows, L, …)`.
            noise: The noise of these rows.
        """
        raise NotImplementedError(f"{type(self).__name__} has no local site.")

    @abstractmethod
    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> Tensor | None:
        """A value of the latent site from which a guide starts. Shape `(L, rows, cols)`."""

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        """Sets the parameters of the prior so that some latent value gives these weights, and returns that value.

        Args:
            stack: The stack.
            weights: The factors to represent. Shape `(L, d_o, d_i)`.
            hyper: The values of the hyper-sites, by name.
        """
        return weights

    def site(self, stack: FactorStack, name: str) -> str:
        """The name of a site of a stack."""
        return f"{stack.name}.{name}"

    def shared_site(self, name: str) -> str:
        """The name of a site that all stacks share."""
        return f"{self.name}.{name}"

    def sample_shared(self) -> dict[str, Tensor]:
        """Samples the shared sites, by name, outside all plates."""
        return {
            name: pyro.sample(self.shared_site(name), prior, infer=named_dims(self.dims[name]))
            for name, prior in self.shared_priors().items()
        }


class LatentPrior(Prior):
    r"""A prior of three levels: hyper-sites, the latent site given them, the weights given both.

    .. math:: p(\eta)\, p(V \mid \eta)\, p(W \mid V, \eta)
    """

    @abstractmethod
    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """The distribution of the latent site. Batch shape `()` or `(..., L)`, event shape `(rows, cols)`.

        Args:
            stack: The stack.
            given: The values of the hyper-sites and of the shared sites, by name.
        """

    def sample_weights(self, stack: FactorStack, **shared: Tensor) -> Tensor:
        """Samples hyper-sites, latent site and factors of a stack. Shape `(..., L, d_o, d_i)`."""
        hyper: dict[str, Tensor] = {
            name: pyro.sample(self.site(stack, name), prior, infer=named_dims(self.dims[name]))
            for name, prior in self.hyper_priors(stack).items()
        }
        latent_prior = self.latent_prior(stack, **shared, **hyper)
        latent: Tensor = pyro.sample(
            self.site(stack, str(self.latent)), latent_prior, infer=named_dims(self.latent_dims)
        )
        conditional = self.conditional(stack, latent, **hyper)
        if conditional is None:
            return self.lift(stack, latent)
        weights: Tensor = pyro.sample(self.site(stack, "W"), conditional, infer=named_dims(WEIGHT_DIMS))
        return weights
