"""An adapter of a PEFT model whose factors come from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from bayeslora_pyro.adapters.fingerprints import frozen_weight
from bayeslora_pyro.adapters.operators import LinearOperator, Operator, make_operators
from bayeslora_pyro.adapters.packing import check_packed, seen_tokens
from bayeslora_pyro.adapters.prefix import NotPlainError, Prefix, RefusingOperator, find_prefix
from bayeslora_pyro.adapters.slots import Slot, checkpoints_within, replaced_parameters, whole_inputs
from bayeslora_pyro.adapters.stacks import (
    activated,
    active_adapter,
    as_peft_model,
    check_unmerged,
    find_layers,
    leaf,
    leaves,
    stack_factors,
)
from bayeslora_pyro.types import Batch, Role, Weights, main_input, vocabulary_layer

__all__ = ["Adapter"]

PEFTS_OWN = (".lora_", ".modules_to_save.", ".original_module.")
"""Parts of the names of parameters that PEFT made, or put aside."""


class Adapter:
    """The LoRA layers of one adapter of a PEFT model, grouped into stacks of factors.

    The PEFT model is never changed: factors, and the trainable parameters outside LoRA (a classification head in
    `modules_to_save`), are bound for the time of a run and taken out again, whatever happens.

    Args:
        peft_model: A model with LoRA layers over `nn.Linear`.
        adapter_name: Which of its adapters; the active one by default.
        group_of: From the role and the layer of a factor to what the factors of one stack have in common, beside role
            and shape.

    Attributes:
        stacks: The stacks of factors, one per role, shape and group.

    Raises:
        ValueError: If no such adapter exists, or it has layers whose factors are no plain linear maps.
    """

    def __init__(
        self,
        peft_model: nn.Module,
        adapter_name: str | None = None,
        group_of: Callable[[Role, str], Hashable] | None = None,
    ) -> None:
        peft_model = as_peft_model(peft_model)
        self._peft_model = (peft_model,)  # a tuple, so that no module that holds an Adapter takes it in
        self.adapter_name = adapter_name or active_adapter(peft_model)
        self._layers = find_layers(peft_model, self.adapter_name)
        self.stacks = stack_factors(self._layers, self.adapter_name, group_of)
        self._accepted = _accepted_arguments(peft_model)

    @property
    def peft_model(self) -> PeftModel:
        """The PEFT model itself."""
        return self._peft_model[0]

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        layer = next(iter(self._layers.values()))
        return leaf(layer, "A", self.adapter_name).weight.device

    def scaling(self, name: str) -> float:
        """The factor of `B A` in the named layer, `lora_alpha / r` for plain LoRA."""
        return float(self._layers[name].scaling[self.adapter_name])

    def base_layer(self, name: str) -> nn.Module:
        """The frozen layer under the named LoRA layer."""
        return self._layers[name].get_base_layer()

    def frozen_weight(self, name: str) -> Tensor | None:
        """The weight of that layer; None where it is quantised, or divided among processes."""
        return frozen_weight(self.base_layer(name))

    def lora_weights(self) -> dict[str, Tensor]:
        """Copies the factors that the PEFT model has now, in float32 at least. Shapes `(L, d_o, d_i)`."""
        return {
            stack.name: torch.stack(
                [
                    _at_least_single(leaf(self._layers[name], stack.role, self.adapter_name).weight)
                    for name in stack.adapters
                ]
            )
            for stack in self.stacks
        }

    def head_parameters(self) -> dict[str, Tensor]:
        """Copies the trainable parameters of the PEFT model outside LoRA, in float32 at least, by name."""
        own = f".modules_to_save.{self.adapter_name}."
        return {
            name: _at_least_single(parameter).clone()
            for name, parameter in self.peft_model.named_parameters()
            if own in name or (parameter.requires_grad and not any(part in name for part in PEFTS_OWN))
        }

    def run_with(
        self,
        weights: Weights,
        batch: Batch,
        head: Mapping[str, Tensor] | None = None,
        *,
        shared: bool = False,
        operators: Mapping[str, Sequence[Operator]] | None = None,
        prefix: Prefix | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs the PEFT model on a batch with these factors.

        Args:
            weights: The factors by stack name, `(L, d_o, d_i)`; with a leading dimension S, the batch is repeated S
                times and tile `s` sees the factors `[s]`.
            batch: What a collator yields; what the model does not take is left out, and so are the labels.
            head: Values for parameters outside LoRA, by name.
            shared: Whether S draws share the batch instead: part `s` of S equal parts sees the factors `[s]`.
            operators: What applies the factors to activations, by stack name, where it is not a linear map.
            prefix: What :meth:`shared_prefix` has computed for the batch, which is not computed again.
            kwargs: Further arguments for the model.

        Returns:
            The output of the model, for `S * items` items, or for `items` if they are shared.

        Raises:
            ValueError: If the draws cannot share the rows of the batch evenly.
        """
        inputs, kwargs = self.model_inputs(batch), self._without_cache(kwargs)
        if (num_draws := _num_draws(weights)) is not None:
            if shared:
                _check_shares(inputs, num_draws)
            else:
                inputs = {name: _repeat(value, num_draws) for name, value in inputs.items()}
        if operators is None:
            operators = make_operators(weights, rows=len(main_input(inputs)))
        with self.bind(weights, head, operators):
            if prefix is not None:
                with suppress(NotPlainError), prefix.replayed(num_draws or 1):
                    return self.peft_model(**inputs, **kwargs)
            return self.peft_model(**inputs, **kwargs)

    def shared_prefix(
        self,
        weights: Weights,
        batch: Batch,
        head: Mapping[str, Tensor] | None = None,
        *,
        random: Mapping[str, Sequence[bool]],
        **kwargs: Any,
    ) -> Prefix | None:
        """Computes what comes before the first random factor, which is the same for all draws.

        Args:
            weights: The factors by stack name, `(S, L, d_o, d_i)`.
            batch: What a collator yields.
            head: Values for parameters outside LoRA, by name.
            random: Which factors are random, by stack name.
            kwargs: Further arguments for the model.

        Returns:
            The blocks before the first random factor, with what they put out; None where there are none, or the model
            is no plain stack of blocks.
        """
        names = {
            name
            for stack in self.stacks
            for name, differs in zip(stack.adapters, random[stack.name], strict=True)
            if differs
        }
        prefix = find_prefix(self.peft_model.get_base_model(), names)
        if prefix is None:
            return None
        operators = {
            name: [
                RefusingOperator(value) if differs else LinearOperator(value)
                for value, differs in zip(values[0], random[name], strict=True)
            ]
            for name, values in weights.items()
        }
        inputs, kwargs = self.model_inputs(batch), self._without_cache(kwargs)
        with suppress(NotPlainError), self.bind(weights, head, operators):
            return prefix.recorded(lambda: self.peft_model(**inputs, **kwargs), len(main_input(batch)))
        return None

    def model_inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model takes of a batch, and for a packed one the mask that keeps its options apart.

        Raises:
            ValueError: If the batch is packed, and the model would not read it as it reads row by row.
        """
        inputs = {name: value for name, value in batch.items() if name in self._accepted}
        if "option" in batch:
            base_model = self.peft_model.get_base_model()
            check_packed(base_model, batch)
            inputs["attention_mask"] = seen_tokens(base_model, batch)
        return inputs

    def _without_cache(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Unless told otherwise, leaves out the keys and values of all tokens, that nobody reads."""
        return ({"use_cache": False} if "use_cache" in self._accepted else {}) | dict(kwargs)

    @contextmanager
    def bind(
        self,
        weights: Weights,
        head: Mapping[str, Tensor] | None = None,
        operators: Mapping[str, Sequence[Operator]] | None = None,
    ) -> Iterator[PeftModel]:
        """Puts factors into the PEFT model, and takes them out again on leaving.

        A layer under gradient checkpointing runs a second time in the backward pass, after this context was left: it
        gets the same factors bound again for that time.
        """
        operators = make_operators(weights) if operators is None else operators
        slots = [
            (leaves(self._layers[name], stack.role), Slot(operator))
            for stack in self.stacks
            for name, operator in zip(stack.adapters, operators[stack.name], strict=True)
        ]
        values = {name: value.to(self._dtype_of(name)) for name, value in (head or {}).items()}
        bound = partial(self._bound, slots, values)
        vocabulary = vocabulary_layer(self.peft_model.get_base_model())
        with bound(), checkpoints_within(self.peft_model, bound), whole_inputs(vocabulary):
            yield self.peft_model

    def _dtype_of(self, name: str) -> torch.dtype:
        return self.peft_model.get_parameter(name).dtype

    @contextmanager
    def _bound(
        self, slots: Sequence[tuple[nn.ModuleDict, Slot]], head: Mapping[str, Tensor]
    ) -> Iterator[None]:
        check_unmerged(self._layers)
        leaves_of = [factors._modules for factors, _ in slots]
        before = [modules[self.adapter_name] for modules in leaves_of]
        try:
            for modules, (_, slot) in zip(leaves_of, slots, strict=True):
                modules[self.adapter_name] = slot
            with replaced_parameters(self.peft_model, head), activated(self.peft_model, self.adapter_name):
                yield
        finally:
            for modules, module in zip(leaves_of, before, strict=True):
                modules[self.adapter_name] = module


def _at_least_single(parameter: Tensor) -> Tensor:
    """Gives a parameter in float32 where it is less precise."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


def _repeat(value: Any, count: int) -> Any:
    """Repeats what has items; leaves a scalar alone."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return value.repeat(count, *[1] * (value.dim() - 1))


def _check_shares(inputs: Mapping[str, Any], num_draws: int) -> None:
    rows = next(v.shape[0] for v in inputs.values() if isinstance(v, Tensor) and v.dim() > 0)
    if rows % num_draws:
        raise ValueError(
            f"num_draws={num_draws} draws cannot share {rows} rows evenly: give a divisor of it."
        )


def _num_draws(weights: Weights) -> int | None:
    """Reads S from factors `(S, L, d_o, d_i)`; None where the factors are one draw."""
    sizes = {weight.shape[0] for weight in weights.values() if weight.dim() == 4}
    if len(sizes) > 1:
        raise ValueError(f"weights has stacks of {sorted(sizes)} draws: each should have the same number.")
    return sizes.pop() if sizes else None


def _accepted_arguments(peft_model: PeftModel) -> frozenset[str]:
    parameters = inspect.signature(peft_model.get_base_model().forward).parameters
    return frozenset(parameters) - {"labels", "self"}
