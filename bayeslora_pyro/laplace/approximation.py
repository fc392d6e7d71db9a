"""The curvature at a trained LoRA, and the posteriors that it gives with one precision of the prior or another."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from bayeslora_pyro.curvature import Diagonal, Evidence, Kronecker, Sizes, accumulate
from bayeslora_pyro.guides import LaplaceGuide
from bayeslora_pyro.isolation import evaluating
from bayeslora_pyro.laplace.config import LaplaceConfig
from bayeslora_pyro.models import BayesianLora, GaussianPrior, PointPrior, Prior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Batch, FactorStack, Weights

__all__ = ["Approximation", "random_pattern"]


class Approximation:
    """The curvature of the likelihood at a trained LoRA.

    Args:
        old: The model that was trained: its head, likelihood and number of items are kept.
        lora: The factors by the stack names of that model. Shapes `(L, d_o, d_i)`.
        batches: The training data.
        config: The settings.

    Attributes:
        factors: The stack and the place of each random factor.
        evidence: The evidence as a function of the precision of the prior.
    """

    def __init__(
        self, old: BayesianLora, lora: Weights, batches: Sequence[Batch], config: LaplaceConfig
    ) -> None:
        self._old, self._config = old, config
        self._lora = {
            (stack.role, module): weight
            for stack in old.stacks
            for module, weight in zip(stack.adapters, lora[stack.name], strict=True)
        }
        model = self._model(torch.ones(0))
        weights = self._weights(model.stacks)
        structure = _structure(model.stacks, config, model.adapter.device)
        with evaluating(model.adapter.peft_model, model):
            totals = accumulate(model, weights, batches, structure, fisher=config.fisher, seed=config.seed)
        self.num_items = totals.num_items
        random = [stack for stack in model.stacks if model.prior_of(stack).latent is not None]
        self.factors = [(stack, place) for stack in random for place in range(len(stack))]
        self._curvature, values, self._captured = _read(
            structure, model.stacks, random, old.num_data / totals.num_items
        )
        norms = torch.stack(
            [weights[stack.name][place].double().square().sum() for stack, place in self.factors]
        )
        self.evidence = Evidence(totals.log_likelihood * old.num_data / totals.num_items, values, norms.cpu())

    def groups(self) -> list[int]:
        """The group of each factor, of those that share a precision."""
        role, module = self._config.per in ("role", "factor"), self._config.per in ("layer", "factor")
        found = [
            (stack.role if role else None, stack.adapters[place] if module else None)
            for stack, place in self.factors
        ]
        known = list(dict.fromkeys(found))
        return [known.index(key) for key in found]

    def posterior(self, precision: Tensor) -> Posterior:
        """The posterior with these precisions of the prior.

        Args:
            precision: One for each of :attr:`factors`. Shape `(factors,)`.
        """
        model = self._model(precision)
        ranks = {
            name: (each["row_values"].shape[-1], each["col_values"].shape[-1])
            for name, each in self._curvature.items()
            if "row_values" in each
        }
        guide = LaplaceGuide(
            model, structure=self._config.structure, ranks=ranks, predictive=self._config.predictive
        )
        guide.to(model.adapter.device)
        guide.from_lora(self._weights(model.stacks))
        for stack in model.stacks:
            if stack.name in self._curvature:
                own = [
                    value for value, (other, _) in zip(precision, self.factors, strict=True) if other == stack
                ]
                guide.set_curvature(stack, torch.stack(own), **self._curvature[stack.name])
        return Posterior(model, guide)

    def facts(self, precision: Tensor) -> dict[str, Any]:
        """What is worth knowing of the approximation, in JSON values."""
        by_group = dict(zip(self.groups(), precision.tolist(), strict=True))
        return {
            "structure": self._config.structure,
            "precision": [by_group[index] for index in sorted(by_group)],
            "chosen_by": self._config.precision if isinstance(self._config.precision, str) else "hand",
            "log_likelihood": self.evidence.log_likelihood,
            "log_evidence": float(self.evidence.log_evidence(precision)),
            "effective_dimension": float(self.evidence.effective_dimension(precision).sum()),
            "captured": self._captured,
            "num_items": self.num_items,
        }

    def _model(self, precision: Tensor) -> BayesianLora:
        """The model with these precisions, or before they are known."""
        scales: dict[str, float] = {}
        if len(precision):
            names = [f"{stack.name}/{stack.adapters[place]}" for stack, place in self.factors]
            scales = dict(zip(names, precision.rsqrt().tolist(), strict=True))
        if len({*scales.values()}) == 1:
            prior: Prior = GaussianPrior(next(iter(scales.values())))
        else:
            prior = GaussianPrior(scales=scales)
        pattern = random_pattern(self._old.stacks, self._config.modules)
        return self._old.with_prior(prior if pattern is None else {pattern: prior, "AB": PointPrior()})

    def _weights(self, stacks: Sequence[FactorStack]) -> dict[str, Tensor]:
        """The trained factors by the stack names of a new model. Shapes `(L, d_o, d_i)`."""
        return {
            stack.name: torch.stack([self._lora[stack.role, module] for module in stack.adapters])
            for stack in stacks
        }


def random_pattern(stacks: Sequence[FactorStack], modules: str | None) -> str | None:
    """The pattern of the factors that are random, None for all of them.

    Args:
        stacks: The stacks.
        modules: What :class:`LaplaceConfig` has.

    Raises:
        ValueError: If it fits no factor.
    """
    pattern = _last_layer(stacks) if modules == "last" else modules
    fits = [
        pattern is None
        or pattern == stack.role
        or fnmatchcase(module, pattern)
        or fnmatchcase(f"{module}.{stack.role}", pattern)
        for stack in stacks
        for module in stack.adapters
    ]
    if not any(fits):
        raise ValueError(
            f"modules={modules!r} fits no adapted module: give a pattern of such names as {stacks[0].adapters[0]!r}."
        )
    return None if all(fits) else pattern


def _last_layer(stacks: Sequence[FactorStack]) -> str:
    """The pattern of the adapted modules of the last layer, by the numbers of layers in their names."""
    numbered = [
        (int(match[2]), match[1])
        for stack in stacks
        for module in stack.adapters
        if (match := re.match(r"(.*?)\.(\d+)\.", module))
    ]
    if not numbered:
        raise ValueError(
            "modules='last' needs layers with numbers in their names: give a pattern, as '*.lm_head'."
        )
    number, prefix = max(numbered)
    return f"{prefix}.{number}.*"


def _structure(
    stacks: Sequence[FactorStack], config: LaplaceConfig, device: torch.device
) -> Diagonal | Kronecker:
    if config.structure == "diagonal":
        return Diagonal(stacks, device)
    return Kronecker(stacks, Sizes(config.rank, config.sketch, config.max_dense), config.sharing, device)


def _read(
    structure: Diagonal | Kronecker,
    stacks: Sequence[FactorStack],
    random: Sequence[FactorStack],
    scale: float,
) -> tuple[dict[str, dict[str, Tensor]], Tensor, float]:
    """The curvature of random stacks as a guide takes it, the eigenvalues of their factors, and the share captured."""
    curvature: dict[str, dict[str, Tensor]] = {}
    values: list[Tensor] = []
    captured, first = [1.0], 0
    for stack in stacks:
        indices = range(first, first + len(stack))
        first += len(stack)
        if stack not in random:
            continue
        if isinstance(structure, Diagonal):
            sums = torch.stack([structure.sums[index] * scale for index in indices])
            curvature[stack.name] = {"curvature": sums}
            values += list(sums.flatten(1))
            continue
        sides = [structure.eigen(index, scale) for index in indices]
        curvature[stack.name] = {
            f"{side}_{part}": torch.stack([getattr(pair[place], part) for pair in sides])
            for place, side in enumerate(("row", "col"))
            for part in ("vectors", "values")
        }
        values += [torch.outer(rows.values, cols.values).flatten() for rows, cols in sides]
        captured += [rows.captured * cols.captured for rows, cols in sides]
    return curvature, torch.nn.utils.rnn.pad_sequence(values, batch_first=True).cpu(), min(captured)
