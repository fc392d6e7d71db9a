"""What a Laplace approximation reads off a forward pass: the inputs of the factors, and gradients of their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.types import Batch, FactorStack, Weights, main_input

__all__ = ["Gradients", "Record", "Recorder", "record"]


class Recorder:
    """Applies a factor, and keeps what went in and what came out.

    Args:
        weight: The factor. Shape `(out, in)`.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(rows, ..., in)` to `(rows, ..., out)`."""
        inputs = inputs.to(self.weight.dtype)
        outputs = torch.nn.functional.linear(inputs, self.weight)
        if not outputs.requires_grad:  # nothing before it does: here the graph begins
            outputs.requires_grad_()
        self.inputs.append(inputs.detach())
        self.outputs.append(outputs)
        return outputs


@dataclass(frozen=True)
class Gradients:
    """The gradient of something with respect to the outputs of each factor, in the order of the stacks.

    Those at tokens that do not count are not yet left out.

    Args:
        of: By factor, one for each call. Shapes `(rows, tokens, out)`.
    """

    of: tuple[tuple[Tensor, ...], ...]


class Record:
    """One forward pass in which each factor was recorded.

    Args:
        scores: What the likelihood is a function of, with its graph. Shape `(items, C)`.
        recorders: The factors, in the order of the stacks.
        mask: Which tokens are real, `(rows, tokens)`; None for all.
        item: The item of each row. Shape `(rows,)`.
        column: The one score that a row bears on, `(rows,)`; None where it bears on all of its item's.
    """

    def __init__(
        self,
        scores: Tensor,
        recorders: list[Recorder],
        mask: Tensor | None,
        item: Tensor,
        column: Tensor | None,
    ) -> None:
        self.scores, self.recorders, self.mask, self.item, self.column = scores, recorders, mask, item, column
        self._by_row: Gradients | None = None

    @property
    def num_items(self) -> int:
        """The number of items."""
        return self.scores.shape[0]

    def inputs(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The inputs of a factor, one for each call, and which tokens of them count.

        Shapes `(rows, tokens, in)` and `(rows, tokens)`.
        """
        for inputs in self.recorders[index].inputs:
            values = _by_token(inputs)
            yield values, self._mask_for(values)

    def pull_back(self, cotangent: Tensor) -> Gradients:
        r"""Computes the gradients of :math:`\sum_{nc} v_{nc} f_{nc}` with respect to the outputs of the factors.

        Where each row bears on one score only, one backward pass serves every cotangent.

        Args:
            cotangent: The weights :math:`v`. Shape `(items, C)`.
        """
        if self.column is None:
            return self._backward(cotangent)
        if self._by_row is None:
            self._by_row = self._backward(self.scores.detach().isfinite().to(self.scores.dtype))
        share = cotangent[self.item, self.column][:, None, None]
        return Gradients(tuple(tuple(g * share for g in each) for each in self._by_row.of))

    def _backward(self, cotangent: Tensor) -> Gradients:
        outputs = [output for recorder in self.recorders for output in recorder.outputs]
        found = torch.autograd.grad(
            self.scores, outputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients = iter(found)
        return Gradients(
            tuple(tuple(_by_token(next(gradients)) for _ in recorder.outputs) for recorder in self.recorders)
        )

    def _mask_for(self, values: Tensor) -> Tensor:
        """The mask, where it is about these tokens; else all of them count."""
        if self.mask is not None and self.mask.shape == values.shape[:2]:
            return self.mask
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def _by_token(values: Tensor) -> Tensor:
    """Sees what a factor maps as `(rows, tokens, features)`: one token where there is one vector for each row."""
    return values.reshape(values.shape[0], -1, values.shape[-1])


def record(model: BayesianLora, weights: Weights, batch: Batch) -> Record:
    """Runs the language model on a batch and records every factor.

    Args:
        model: The model, in eval mode.
        weights: The factors by stack name. Shapes `(L, d_o, d_i)`.
        batch: What a collator yields, on the device of the model.
    """
    by_stack = {
        stack.name: [Recorder(weight.detach()) for weight in weights[stack.name]] for stack in model.stacks
    }
    recorders = [recorder for each in by_stack.values() for recorder in each]
    likelihood = model.likelihood
    with torch.enable_grad():
        outputs = model.run_with(weights, batch, operators=by_stack)
        scores = likelihood.scores(outputs, batch)
    mask = batch.get("attention_mask")
    _check_rows(recorders, batch, model.stacks)
    return Record(
        scores,
        recorders,
        None if mask is None else mask.bool(),
        likelihood.item_of_row(batch),
        likelihood.column_of_row(batch),
    )


def _check_rows(recorders: list[Recorder], batch: Batch, stacks: tuple[FactorStack, ...]) -> None:
    """Each row of what a factor sees must be a row of the batch, or nothing says whose it is."""
    names = [f"{stack.name}/{module}" for stack in stacks for module in stack.adapters]
    rows = main_input(batch).shape[0]
    for name, recorder in zip(names, recorders, strict=True):
        if any(inputs.shape[0] != rows for inputs in recorder.inputs):
            raise ValueError(
                f"{name} sees {recorder.inputs[0].shape[0]} rows of a batch of {rows}: its layer mixes items, and a "
                "Laplace approximation cannot tell them apart. Leave it out of target_modules."
            )
