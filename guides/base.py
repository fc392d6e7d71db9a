"""What a guide is: a base distribution and a transform for each stack of factors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast, final

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import Transform

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.adapters import Flipout, PerItem
from bayeslora_pyro.guides.guided import GuidedModel, GuidedPrior
from bayeslora_pyro.guides.sites import MeanFieldSite, SitePosterior
from bayeslora_pyro.plates import draws_plate, items_plate
from bayeslora_pyro.types import WEIGHT_DIMS, Batch, FactorStack, named_dims

__all__ = ["NOISE_SCALE", "Guide", "GuidedModel", "GuidedPrior"]

NOISE_SCALE = 0.05
r"""Where :math:`\lambda` starts: little noise, so that the means come first; see docs/calibration.md."""


class Guide(AbstractPyroModule):
    r"""A variational family: for each stack, a base distribution pushed through a transform.

    A family says what :math:`q` of the latent site is, in :meth:`get_base_dist` and, where it has one,
    :meth:`get_transform`; all else is done here. Where the prior has a conditional, the guide draws the weights from
    it with its own noise scale :math:`0 < \lambda < 1`, one per factor, :math:`\lambda = \mathrm{sigmoid}(\rho)`.

    Hyper-sites and shared sites of a prior are approximated entry by entry in every family, by :attr:`site_posterior`;
    local sites by :meth:`local_posteriors`.

    Args:
        model: The model to approximate.
        noise_scale: The initial :math:`\lambda`.
        seed: The seed of everything that starts at random.
    """

    site_posterior: ClassVar[type[SitePosterior]] = MeanFieldSite
    """How the sites above the latent one are approximated."""

    predictive: str = "network"
    """How its posterior predicts unless told otherwise, one of `PREDICTIVES`."""

    independent_entries: ClassVar[bool] = False
    """Whether the entries of the latent site are independent, and symmetric about their means."""

    def __init__(self, model: GuidedModel, *, noise_scale: float = NOISE_SCALE, seed: int = 0) -> None:
        super().__init__()
        if not 0 < noise_scale < 1:
            raise ValueError(f"noise_scale should lie between 0 and 1, and is {noise_scale}.")
        self._model = (model,)  # a tuple, so that the guide does not take the model in
        self.initial_noise_scale = noise_scale
        self.seed = seed
        self._setup()

    def _setup(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        known: list[GuidedPrior] = []
        for stack in self.stacks:
            prior = self.model.prior_of(stack)
            start = prior.initial_latent(stack, generator)
            if start is not None:
                own = PyroModule[nn.Module]()
                setattr(self, stack.name, own)
                if prior.conditional(stack, start) is not None:
                    noise_scale = start.new_full((len(stack),), self.initial_noise_scale)
                    own.raw_noise_scale = nn.Parameter(noise_scale.logit())
                own.hyper = self._site_posteriors(prior.hyper_priors(stack), (len(stack),), generator)
                # What stacks share is kept once, by the first of them.
                shared = {} if any(prior is other for other in known) else prior.shared_priors()
                own.shared = self._site_posteriors(shared, (), generator)
                known.append(prior)
                self._setup_stack(stack, own, start, generator)

    def _site_posteriors(
        self,
        priors: Mapping[str, TorchDistribution],
        batch_shape: tuple[int, ...],
        generator: torch.Generator,
    ) -> nn.ModuleDict:
        posteriors: Any = PyroModule[nn.ModuleDict]()
        for name, prior in priors.items():
            posteriors[name] = self.site_posterior(prior, batch_shape, generator)
        return cast(nn.ModuleDict, posteriors)

    @abstractmethod
    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        """Makes the parameters of a stack, as attributes of `own`."""

    @abstractmethod
    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """The base distribution of the latent site. Batch shape `(L,)`, event shape `(rows, cols)`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""

    def get_transform(self, stack: FactorStack) -> Transform | None:
        """The transform of the latent site; None for the identity."""
        return None

    @abstractmethod
    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        """Moves the centre of the base distribution."""

    @final
    def fresh(self, model: GuidedModel, seed: int) -> Self:
        """Makes the guide anew, for another model and from another seed."""
        return type(self)(model, **(self.config() | {"seed": seed}))

    @property
    def model(self) -> GuidedModel:
        """The model that is approximated."""
        return self._model[0]

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors of the model."""
        return self.model.stacks

    @final
    def get_posterior(self, stack: FactorStack) -> TorchDistribution:
        """The distribution of the latent site: the base distribution, pushed through the transform."""
        base, transform = self.get_base_dist(stack), self.get_transform(stack)
        if transform is None:
            return base
        if isinstance(base, dist.Delta):  # a point stays a point: it has no density to change
            return dist.Delta(transform(base.v), event_dim=2)
        return dist.TransformedDistribution(base, [transform])

    def has_density(self, stack: FactorStack) -> bool:
        """Whether the latent site has a density; a point, or several, has none, and no importance weights."""
        return not isinstance(self.get_posterior(stack), dist.Delta)

    def get_per_item(self, stack: FactorStack) -> PerItem | None:
        """How each item of a batch has a draw of its own from the base distribution, at the cost of one.

        By flipout where the entries are independent and symmetric; None where there is no way.
        """
        return Flipout(self.get_base_dist(stack).mean) if self.independent_entries else None

    @final
    def per_item(self) -> dict[str, PerItem]:
        """How each item of a batch has a draw of its own of the factors, by stack name, where there is a way.

        That is where the family has one, and the latent site is the factor itself.
        """
        return {
            stack.name: rule
            for stack in self.stacks
            if self.model.prior_of(stack).latent is not None
            and self.get_transform(stack) is None
            and self._is_factor(stack, self.get_base_dist(stack).mean)
            and (rule := self.get_per_item(stack)) is not None
        }

    def _is_factor(self, stack: FactorStack, latent: Tensor) -> bool:
        """Whether the latent site is the factor itself."""
        determined = not hasattr(self._own(stack), "raw_noise_scale")
        return determined and self.model.prior_of(stack).lift(stack, latent) is latent

    @final
    def factor_posteriors(self) -> dict[str, TorchDistribution]:
        """The distributions of the factors that have one, by stack name. Batch shape `(L,)`, event shape `(d_o, d_i)`.

        Raises:
            ValueError: If a factor is not its latent site, but depends on it.
        """
        found = {}
        for stack in self.stacks:
            prior = self.model.prior_of(stack)
            if prior.latent is None:
                continue
            posterior = found[stack.name] = self.get_posterior(stack)
            if not self._is_factor(stack, torch.zeros(posterior.shape())):
                raise ValueError(
                    f"The factors of {stack.name} depend on their latent site {prior.latent!r}, and have no "
                    "distribution in closed form: predict with predictive='network', or take a prior of the factors "
                    "themselves."
                )
        return found

    @final
    def noise_scale(self, stack: FactorStack) -> Tensor:
        r"""The factor :math:`\lambda` of the conditional noise, where the prior has one. Shape `(L,)`."""
        return cast(Tensor, self._own(stack).raw_noise_scale).sigmoid()

    @final
    def hyper_means(self, stack: FactorStack) -> dict[str, Tensor]:
        """The means of the hyper-sites of a stack, by name. Shapes `(L, …)`."""
        return {name: posterior().mean for name, posterior in self._hyper(stack).items()}

    @final  # type: ignore[misc]
    def forward(
        self, batch: Batch | None = None, num_draws: int = 1, per_item: Mapping[str, PerItem] | None = None
    ) -> dict[str, Tensor]:
        """Samples the latent sites of all stacks, and the weights where they are a site of their own.

        Args:
            batch: What the model takes; the local sites are those of its items, and without it there are none.
            num_draws: The number of draws S that share the batch.
            per_item: What the model takes, so that items have draws of their own; of no account here.

        Returns:
            The weights by stack name, `(L, d_o, d_i)`, or `(S, L, d_o, d_i)` for several draws.
        """
        priors = {stack: self.model.prior_of(stack) for stack in self.stacks}
        latent = {stack: prior for stack, prior in priors.items() if prior.latent is not None}
        weights = {}
        with draws_plate(num_draws):
            for stack, prior in latent.items():
                self._sample_shared(stack, prior)
            for stack, prior in latent.items():
                with pyro.plate(stack.name, len(stack), dim=-1):
                    weights[stack.name] = self._sample_stack(stack, prior)
        if batch is not None and (local := self.local_posteriors(batch)):
            with items_plate(self.model.likelihood.num_items(batch), self.model.num_data):
                for stack in (stack for stack in self.stacks if stack.name in local):
                    prior = priors[stack]
                    pyro.sample(prior.site(stack, str(prior.local)), local[stack.name])
        return weights

    def local_posteriors(self, batch: Batch) -> dict[str, TorchDistribution]:
        """The distributions of the local sites of the items of a batch, by stack name: here, alike for all items.

        Args:
            batch: What a collator yields.
        """
        num_items = self.model.likelihood.num_items(batch)
        return {
            stack.name: prior.initial_local(stack).expand((num_items,))
            for stack in self.stacks
            if (prior := self.model.prior_of(stack)).local is not None
        }

    def _sample_shared(self, stack: FactorStack, prior: GuidedPrior) -> None:
        for name, posterior in cast(Any, self._own(stack)).shared.items():
            pyro.sample(prior.shared_site(name), posterior(), infer=named_dims(prior.dims[name]))

    def _sample_stack(self, stack: FactorStack, prior: GuidedPrior) -> Tensor:
        hyper: dict[str, Tensor] = {
            name: pyro.sample(prior.site(stack, name), posterior(), infer=named_dims(prior.dims[name]))
            for name, posterior in self._hyper(stack).items()
        }
        name = prior.site(stack, str(prior.latent))
        latent: Tensor = pyro.sample(name, self.get_posterior(stack), infer=named_dims(prior.latent_dims))
        if not hasattr(self._own(stack), "raw_noise_scale"):  # the latent site determines the weights
            return prior.lift(stack, latent)
        conditional: Any = prior.conditional(stack, latent, self.noise_scale(stack), **hyper)
        weights: Tensor = pyro.sample(prior.site(stack, "W"), conditional, infer=named_dims(WEIGHT_DIMS))
        return weights

    @final
    def from_lora(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Moves model and guide to a trained LoRA: with no noise, every draw is that LoRA.

        Args:
            weights: The factors by stack name, `(L, d_o, d_i)`; those of the PEFT model by default.
        """
        values = self.model.lora_weights() if weights is None else weights
        for stack in self.stacks:
            prior = self.model.prior_of(stack)
            if prior.latent is None:
                prior.embed(stack, values[stack.name])
                continue
            hyper = {name: posterior.location for name, posterior in self._hyper(stack).items()}
            self._set_location(stack, prior.embed(stack, values[stack.name], **hyper))

    def _hyper(self, stack: FactorStack) -> Mapping[str, SitePosterior]:
        return cast(Mapping[str, SitePosterior], cast(Any, self._own(stack)).hyper)

    def _own(self, stack: FactorStack) -> nn.Module:
        return cast(nn.Module, getattr(self, stack.name))
