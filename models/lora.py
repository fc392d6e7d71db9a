"""The Pyro model of a language model with random LoRA factors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayeslora_pyro.adapters import (
    Adapter,
    Features,
    FreshNoise,
    Noise,
    Operator,
    PerItem,
    Prefix,
    make_operators,
    pooled_features,
)
from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.models.catalogue import LIKELIHOODS, PRIORS, look_up
from bayeslora_pyro.models.likelihood import Likelihood
from bayeslora_pyro.models.placement import Placement
from bayeslora_pyro.plates import draws_plate, items_plate
from bayeslora_pyro.types import Batch, FactorStack, Weights, main_input

__all__ = ["BayesianLora"]

AnyPrior = Prior | str


class BayesianLora(PyroModule):
    r"""A language model whose LoRA factors are random variables.

    .. math:: p(y, W) = \prod_f p(W_f) \prod_n p(y_n \mid x_n, W)

    The PEFT model stays as it is, whatever is fitted. Its trainable parameters outside LoRA, such as a fresh
    classification head in `modules_to_save`, are ordinary parameters of this model, as copies.

    Args:
        peft_model: A model with LoRA layers; its factors are where guides may start.
        prior: The prior of all factors, or its name in `PRIORS`; or several, by role, as `{"A": …, "B": …}`, or by
            pattern of the names of modules, as `{"*.layer.[0-5].*": …, "AB": …}`, where the most specific key counts.
        likelihood: The distribution of the observations given the output of the language model, or its name.
        num_data: The number of items of the data set, to which the likelihood of a batch is scaled.
        adapter_name: Which adapter of the PEFT model; the active one by default.
        seed: The seed of everything that starts at random.
        initial: The factors where guides may start, by stack name; those of the PEFT model by default.
    """

    def __init__(
        self,
        peft_model: nn.Module,
        prior: AnyPrior | Mapping[str, AnyPrior] = "inducing",
        likelihood: Likelihood | str = "classification",
        num_data: int = 1,
        *,
        adapter_name: str | None = None,
        seed: int = 0,
        initial: Weights | None = None,
    ) -> None:
        super().__init__()
        if num_data < 1:
            raise ValueError(f"num_data should be the number of training items, and is {num_data}.")
        self.num_data = num_data
        self.seed = seed
        by_key = prior if isinstance(prior, Mapping) else {"AB": prior}
        placement = Placement(by_key)
        self.adapter = Adapter(peft_model, adapter_name, placement.key_of)
        self._keys = {stack.name: placement.key_of(stack.role, stack.adapters[0]) for stack in self.stacks}
        placement.check_used(self._keys.values())
        self._initial = None if initial is None else dict(initial)
        self.likelihood = copy.deepcopy(look_up("likelihood", likelihood, LIKELIHOODS))
        self.priors = self._setup_priors(by_key)
        head = self.adapter.head_parameters()
        self.head_names = tuple(head)
        self.head = nn.ParameterList(parameter.detach().clone() for parameter in head.values())

    def _setup_priors(self, by_key: Mapping[str, AnyPrior]) -> nn.ModuleDict:
        generator = torch.Generator().manual_seed(self.seed)
        initial = self.lora_weights()
        priors: Any = PyroModule[nn.ModuleDict]()
        for key in sorted(by_key):
            prior = copy.deepcopy(look_up("prior", by_key[key], PRIORS))
            prior.name = _module_name(key)
            prior.setup([stack for stack in self.stacks if self._keys[stack.name] == key], initial, generator)
            priors[prior.name] = prior
        return cast(nn.ModuleDict, priors)

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors, one per role, shape and prior."""
        return self.adapter.stacks

    def prior_of(self, stack: FactorStack) -> Prior:
        """The prior of a stack."""
        return cast(Prior, self.priors[_module_name(self._keys[stack.name])])

    def priors_by_key(self) -> dict[str, Prior]:
        """The priors by role or pattern, `"AB"` where there is one for all: what the argument `prior` takes."""
        return {key: cast(Prior, self.priors[_module_name(key)]) for key in sorted({*self._keys.values()})}

    def lora_weights(self) -> dict[str, Tensor]:
        """The factors where guides may start, those that the PEFT model has. Shapes `(L, d_o, d_i)`."""
        return self.adapter.lora_weights() if self._initial is None else dict(self._initial)

    def fresh(self, seed: int) -> BayesianLora:
        """Makes the model anew from another seed, for an independent fit.

        The prior starts from the seed. So do the factors and the matrices of the head, with the spread that they have
        in the PEFT model; unless its LoRA is trained (its factors B are not zero): then they start there.
        """
        generator = torch.Generator().manual_seed(seed)
        initial = self.adapter.lora_weights()
        trained = any(bool(initial[stack.name].any()) for stack in self.stacks if stack.role == "B")
        priors = {key: type(prior)(**prior.config()) for key, prior in self.priors_by_key().items()}
        model = BayesianLora(
            self.adapter.peft_model,
            priors,
            type(self.likelihood)(**self.likelihood.config()),
            self.num_data,
            adapter_name=self.adapter.adapter_name,
            seed=seed,
            initial=initial if trained else {k: _redrawn(w, generator) for k, w in initial.items()},
        )
        if not trained:
            with torch.no_grad():
                for parameter in model.head:
                    if parameter.dim() > 1:
                        parameter.copy_(_redrawn(parameter, generator))
        return model

    def with_prior(self, prior: AnyPrior | Mapping[str, AnyPrior]) -> BayesianLora:
        """Makes the same model with another prior; its likelihood, its head and its number of items are kept."""
        model = BayesianLora(
            self.adapter.peft_model,
            prior,
            self.likelihood,
            self.num_data,
            adapter_name=self.adapter.adapter_name,
            seed=self.seed,
        ).to(self.adapter.device)
        with torch.no_grad():
            for parameter, value in zip(model.head, self.head, strict=True):
                parameter.copy_(value)
        return model

    def forward(
        self, batch: Batch, num_draws: int = 1, per_item: Mapping[str, PerItem] | None = None
    ) -> Tensor:
        """Samples all factors, runs the language model, and samples or observes `y`.

        Args:
            batch: What a collator yields.
            num_draws: The number of draws that share the batch: each serves an equal part of its items.
            per_item: How each item has a draw of its own of the factors of some stacks, by stack name; see
                :meth:`~bayeslora_pyro.guides.Guide.per_item`.
        """
        weights = self.sample_weights(num_draws)
        operators = make_operators(
            weights,
            per_item,
            self.likelihood.item_of_row(batch) if per_item else None,
            rows=len(main_input(batch)),
        )
        if local := self.sample_local(batch):
            weights = {name: _as_many(values, local.get(name)) for name, values in weights.items()}
            operators |= self.local_operators(weights, local, batch)
        outputs = self.run_with(weights, batch, shared=num_draws > 1, operators=operators)
        y: Tensor = self.likelihood(outputs, batch, self.num_data)
        return y

    def sample_weights(self, num_draws: int = 1) -> dict[str, Tensor]:
        """Samples all factors, by stack name. Shapes `(L, d_o, d_i)`, or `(S, L, d_o, d_i)` for S draws."""
        priors = {stack: self.prior_of(stack) for stack in self.stacks}
        weights, shared = {}, {}
        with draws_plate(num_draws):
            for prior in priors.values():
                if prior.name not in shared:
                    shared[prior.name] = prior.sample_shared()
            for stack, prior in priors.items():
                with pyro.plate(stack.name, len(stack), dim=-1):
                    weights[stack.name] = prior.sample_weights(stack, **shared[prior.name])
        return weights

    def sample_local(self, batch: Batch) -> dict[str, Tensor]:
        """Samples the local sites of the items of a batch, by stack name. Shapes `(..., items, L, K)`."""
        local = {stack: prior for stack in self.stacks if (prior := self.prior_of(stack)).local is not None}
        if not local:
            return {}
        with items_plate(self.likelihood.num_items(batch), self.num_data):
            return {
                stack.name: pyro.sample(prior.site(stack, str(prior.local)), prior.local_prior(stack))
                for stack, prior in local.items()
            }

    def local_operators(
        self, weights: Weights, local: Weights, batch: Batch, noise: Noise | None = None
    ) -> dict[str, Sequence[Operator]]:
        """What applies the factors of the stacks that have a local site, by stack name.

        Args:
            weights: The factors by stack name. Shapes `(L, d_o, d_i)`, or `(S, L, d_o, d_i)` for S tiles.
            local: The values of the local sites. Shapes `(items, L, K)`, or `(S, items, L, K)`.
            batch: What a collator yields.
            noise: The noise of the rows of all tiles, by default from torch's generator.
        """
        rows, count = self.likelihood.item_of_row(batch), self.likelihood.num_items(batch)
        operators = {}
        for stack in self.stacks:
            if stack.name in local:
                values, factors = local[stack.name], weights[stack.name]
                num_tiles = len(factors) if factors.dim() == 4 else 1
                of_rows = values.expand(num_tiles, *values.shape[-3:])[:, rows].flatten(0, 1)
                own = FreshNoise(rows, count, num_tiles) if noise is None else noise
                operators[stack.name] = self.prior_of(stack).local_operators(stack, factors, of_rows, own)
        return operators

    def features(self, batch: Batch, kind: Features) -> Tensor:
        """What the frozen language model says of each item, the mean over its rows. Shape `(items, features)`.

        Args:
            batch: What a collator yields.
            kind: Which features, one of `FEATURES`.
        """
        rows = pooled_features(self.adapter, batch, kind, self.likelihood.context(batch))
        item, count = self.likelihood.item_of_row(batch), self.likelihood.num_items(batch)
        if len(rows) == count:
            return rows
        sums = rows.new_zeros(count, rows.shape[1]).index_add(0, item, rows)
        return sums / torch.bincount(item, minlength=count).unsqueeze(1)

    def run_with(
        self,
        weights: Weights,
        batch: Batch,
        *,
        shared: bool = False,
        operators: Mapping[str, Sequence[Operator]] | None = None,
        prefix: Prefix | None = None,
    ) -> Any:
        """Runs the language model with given factors and the head of this model.

        Args:
            weights: The factors by stack name.
            batch: What a collator yields.
            shared: Whether S draws share the items of the batch, instead of each seeing all of them.
            operators: What applies the factors to activations, by stack name, where it is not a linear map.
            prefix: What :meth:`shared_prefix` has computed for the batch.
        """
        head, options = self.head_values(), self.likelihood.model_arguments(batch)
        return self.adapter.run_with(
            weights, batch, head, shared=shared, operators=operators, prefix=prefix, **options
        )

    def shared_prefix(
        self, weights: Weights, batch: Batch, random: Mapping[str, Sequence[bool]]
    ) -> Prefix | None:
        """Computes what comes before the first random factor; see :meth:`Adapter.shared_prefix`."""
        options = self.likelihood.model_arguments(batch)
        return self.adapter.shared_prefix(weights, batch, self.head_values(), random=random, **options)

    def head_values(self) -> dict[str, Tensor]:
        """The parameters outside LoRA, by their names in the PEFT model."""
        return dict(zip(self.head_names, self.head, strict=True))


def _as_many(factors: Tensor, local: Tensor | None) -> Tensor:
    """Gives factors the draws of their local site, `(S, L, d_o, d_i)`, where that was drawn S times."""
    if local is None or local.dim() == 3 or factors.dim() == 4:
        return factors
    return factors.expand(len(local), *factors.shape)


def _redrawn(values: Tensor, generator: torch.Generator) -> Tensor:
    """Draws a tensor of the same spread."""
    return values.std() * torch.randn(values.shape, generator=generator).to(values)


def _module_name(key: str) -> str:
    """A key as the name of a module, which has no dots."""
    return key.replace(".", "/")
