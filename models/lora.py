"""The Pyro model of a language model with random LoRA factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayeslora_pyro.adapters import Adapter
from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.models.likelihoods import Likelihood
from bayeslora_pyro.types import Batch, FactorStack, Role

__all__ = ["BayesianLora"]


class BayesianLora(PyroModule):
    r"""A language model whose LoRA factors are random variables.

    .. math:: p(y, W) = \prod_f p(W_f) \prod_n p(y_n \mid x_n, W)

    Trainable parameters outside LoRA, such as a fresh classification head in `modules_to_save`, are ordinary
    parameters of this model: copies, so that the PEFT model stays as it is.

    Args:
        peft_model: A model with LoRA layers; its factors are where guides may start.
        prior: The prior of all factors, or one per role, as `{"A": …, "B": …}`.
        likelihood: The distribution of the observations given the output of the language model.
        num_data: The number of items of the data set, to which the likelihood of a batch is scaled.
        adapter_name: Which adapter of the PEFT model; the active one by default.
        seed: The seed of everything that starts at random.
    """

    def __init__(
        self,
        peft_model: nn.Module,
        prior: Prior | Mapping[Role, Prior],
        likelihood: Likelihood,
        num_data: int,
        *,
        adapter_name: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_data < 1:
            raise ValueError(f"num_data should be the number of training items, and is {num_data}.")
        self.num_data = num_data
        self.seed = seed
        self.adapter = Adapter(peft_model, adapter_name)
        self.likelihood = copy.deepcopy(likelihood)
        self.priors = self._setup_priors(prior)
        self._head_names = tuple(self.adapter.head_parameters())
        self.head = nn.ParameterList(p.detach().clone() for p in self.adapter.head_parameters().values())

    def _setup_priors(self, prior: Prior | Mapping[Role, Prior]) -> nn.ModuleDict:
        generator = torch.Generator().manual_seed(self.seed)
        initial = self.adapter.lora_weights()
        if isinstance(prior, Prior):
            own = copy.deepcopy(prior)
            own.setup(self.stacks, initial, generator)
            return PyroModule[nn.ModuleDict]({"AB": own})
        if missing := {"A", "B"} - set(prior):
            raise ValueError(f"prior should have an entry for each of the roles A and B; it has none for {missing}.")
        priors = {}
        for role in sorted(prior):
            priors[role] = copy.deepcopy(prior[role])
            priors[role].setup([stack for stack in self.stacks if stack.role == role], initial, generator)
        return PyroModule[nn.ModuleDict](priors)

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors, one per role and shape."""
        return self.adapter.stacks

    def prior_of(self, stack: FactorStack) -> Prior:
        """The prior of a stack."""
        return cast(Prior, self.priors["AB" if "AB" in self.priors else stack.role])

    def lora_weights(self) -> dict[str, Tensor]:
        """The factors that the PEFT model has. Shapes `(L, d_o, d_i)`."""
        return self.adapter.lora_weights()

    def forward(self, batch: Batch) -> Tensor:
        """Samples all factors, runs the language model, and samples or observes `y`."""
        weights = {}
        for stack in self.stacks:
            with pyro.plate(stack.name, len(stack), dim=-1):
                weights[stack.name] = self.prior_of(stack).sample_weights(stack)
        outputs = self.run_with(weights, batch)
        y: Tensor = self.likelihood(outputs, batch, self.num_data)
        return y

    def run_with(self, weights: Mapping[str, Tensor], batch: Batch) -> object:
        """Runs the language model with given factors and the head of this model."""
        head = dict(zip(self._head_names, self.head, strict=True))
        return self.adapter.run_with(weights, batch, head, **self.likelihood.model_arguments(batch))
