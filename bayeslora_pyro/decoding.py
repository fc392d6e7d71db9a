"""Decoding with draws that are held fixed: `transformers`' own `generate` and cache, all draws in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from bayeslora_pyro.adapters import NotPlainError, Prefix, gathered, make_operators, tiled_rows, varying
from bayeslora_pyro.config import COLLAPSE, WRITERS
from bayeslora_pyro.generation import Generation, GenerationByDraw, mixture
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.prompts import Prompts, Special, decoded, encoded, special_tokens
from bayeslora_pyro.scoring import score
from bayeslora_pyro.types import Weights, to_device

if TYPE_CHECKING:
    from bayeslora_pyro.posterior import Posterior

__all__ = ["By", "Decoding", "generate"]

By: TypeAlias = Literal["mixture", "draw", "mean"]
"""One of `WRITERS`."""

Inputs: TypeAlias = Mapping[str, Tensor]
"""`input_ids` and `attention_mask`, padded on the left."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Args:
        max_new_tokens: The largest number of new tokens.
        temperature: What logits are divided by before a token is sampled; 0 takes the most probable token.
        top_p: The probability of the tokens that are sampled from, the most probable ones.

    Raises:
        ValueError: If a value is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens should be at least 1, and is {self.max_new_tokens}.")
        if not self.temperature >= 0:
            raise ValueError(f"temperature should be 0, for greedy, or more, and is {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p should be above 0 and at most 1, and is {self.top_p}.")

    def arguments(self, special: Special) -> dict[str, Any]:
        """The arguments of `generate`.

        Args:
            special: The token that pads, and those that end a text.
        """
        pad, ends = special
        common: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": 1,
            "num_return_sequences": 1,
            "use_cache": True,
            "pad_token_id": pad,
        }
        if ends:
            common["eos_token_id"] = [*ends]
        if not self.temperature:
            return common | {"do_sample": False}
        return common | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def generate(
    posterior: Posterior,
    prompts: Prompts,
    num_draws: int,
    seed: int,
    how: Decoding,
    by: By,
    tokenizer: Any,
    memory_budget: int | None,
) -> Generation | GenerationByDraw:
    """Writes what comes after some prompts; see :meth:`Posterior.generate`."""
    model = posterior.model
    base_model: Any = model.adapter.peft_model.get_base_model()
    if not getattr(base_model, "can_generate", bool)() or base_model.config.is_encoder_decoder:
        name = type(base_model).__name__
        raise ValueError(f"{name} writes no text: generate needs a decoder, with task_type='CAUSAL_LM'.")
    special = special_tokens(base_model, tokenizer)
    inputs = to_device(encoded(prompts, tokenizer, special[0]), model.adapter.device)
    weights = _writers(posterior, by, num_draws, seed)
    if by == "draw":
        return _apart(model, weights, inputs, how, special, tokenizer, seed, memory_budget)
    return _together(model, weights, inputs, how, special, tokenizer, seed)


def _writers(posterior: Posterior, by: By, num_draws: int, seed: int) -> dict[str, Tensor]:
    """The factors of those who write, `(S, L, d_o, d_i)`."""
    if by not in WRITERS:
        raise ValueError(f"by should be one of {', '.join(WRITERS)}, and is {by!r}.")
    if posterior.depends_on_items:
        raise ValueError(
            "generate needs one posterior for all items, and the noise of this one depends on the item."
        )
    if by == "mean":
        return {name: weight.unsqueeze(0) for name, weight in posterior.mean_adapter().items()}
    if posterior.is_linearised:
        warnings.warn(f"{COLLAPSE} Generate with by='mean'.", stacklevel=4)
    return posterior.weights(num_draws, seed)


class _Meter:
    """Reads what the draws expect at each token, and answers with their mixture."""

    def __init__(self, num_draws: int) -> None:
        self.num_draws = num_draws
        self.entropy: list[Tensor] = []
        self.aleatoric: list[Tensor] = []
        self.log_probs: list[Tensor] = []
        self._expected: Tensor | None = None

    def answer(self, given: Tensor, logits: Tensor) -> Tensor:
        """The log-probabilities of the mixture, `(rows, vocabulary)`; of one draw its logits, as they are."""
        self.choose(given[:, -1])
        precise = torch.promote_types(logits.dtype, torch.float32)
        log_probs = logits.to(precise).unflatten(0, (self.num_draws, -1)).log_softmax(-1)
        together, self._expected = mixture(log_probs), log_probs
        self.entropy.append(_entropy(together))
        self.aleatoric.append(_entropy(log_probs).mean(0))
        return logits if self.num_draws == 1 else together

    def choose(self, tokens: Tensor) -> None:
        """Notes how probable the tokens were that were chosen last. Shape `(rows,)`."""
        if self._expected is not None:
            index = tokens.expand(self.num_draws, -1).unsqueeze(-1)
            self.log_probs.append(self._expected.gather(-1, index).squeeze(-1))
            self._expected = None


def _together(
    model: BayesianLora,
    weights: Weights,
    prompts: Inputs,
    how: Decoding,
    special: Special,
    tokenizer: Any,
    seed: int,
) -> Generation:
    """One text for each prompt, of all draws."""
    num_draws, random = len(next(iter(weights.values()))), varying(weights)
    if not any(map(any, random.values())):  # then the draws are one, and agree to the last digit
        weights = {name: values[:1] for name, values in weights.items()}
    prefix = model.adapter.shared_prefix(weights, prompts, model.head_values(), random=random, use_cache=True)
    try:
        tokens, meter = _run_together(model, weights, random, prompts, how.arguments(special), prefix, seed)
    except NotPlainError:
        tokens, meter = _run_together(model, weights, random, prompts, how.arguments(special), None, seed)
    mask = _before_the_end(tokens, special)
    steps = (meter.log_probs, meter.entropy, meter.aleatoric)
    read = [torch.stack(each[: tokens.shape[1]], -1).masked_fill(~mask, 0).cpu() for each in steps]
    log_probs, entropy, aleatoric = read[0].expand(num_draws, -1, -1), *read[1:]
    texts = None if tokenizer is None else decoded(tokens, mask, tokenizer)
    return Generation(tokens.cpu(), mask.cpu(), log_probs, entropy, aleatoric, texts)


def _run_together(
    model: BayesianLora,
    weights: Weights,
    random: Mapping[str, Sequence[bool]],
    prompts: Inputs,
    arguments: Mapping[str, Any],
    prefix: Prefix | None,
    seed: int,
) -> tuple[Tensor, _Meter]:
    base_model: Any = model.adapter.peft_model.get_base_model()
    meter = _Meter(len(next(iter(weights.values()))))
    operators = make_operators(weights, random=random)
    with (
        local_rng(seed, "tokens"),
        model.adapter.bind(weights, model.head_values(), operators),
        tiled_rows(base_model, meter.num_draws, prefix, meter.answer),
    ):
        tokens: Tensor = gathered(
            model.adapter.peft_model, lambda: base_model.generate(**prompts, **arguments)
        )
    tokens = tokens[:, prompts["input_ids"].shape[1] :]
    meter.choose(tokens[:, -1])
    return tokens, meter


def _apart(
    model: BayesianLora,
    weights: Weights,
    prompts: Inputs,
    how: Decoding,
    special: Special,
    tokenizer: Any,
    seed: int,
    memory_budget: int | None,
) -> GenerationByDraw:
    """One text for each prompt and draw, each scored under every draw."""
    base_model: Any = model.adapter.peft_model.get_base_model()
    num_draws, random = len(next(iter(weights.values()))), varying(weights)
    rows = {name: value.repeat(num_draws, 1) for name, value in prompts.items()}
    operators = make_operators(weights, random=random)
    with local_rng(seed, "tokens"), model.adapter.bind(weights, model.head_values(), operators):
        output: Tensor = gathered(
            model.adapter.peft_model, lambda: base_model.generate(**rows, **how.arguments(special))
        )
    tokens = output[:, rows["input_ids"].shape[1] :].unflatten(0, (num_draws, -1))
    mask = _before_the_end(tokens, special)
    log_probs = score(model, weights, prompts, tokens, mask, memory_budget)
    texts = None
    if tokenizer is not None:
        texts = tuple(
            zip(*(decoded(*each, tokenizer) for each in zip(tokens, mask, strict=True)), strict=True)
        )
    return GenerationByDraw(tokens.cpu(), mask.cpu(), log_probs.cpu(), texts)


def _before_the_end(tokens: Tensor, special: Special) -> Tensor:
    """The tokens up to the first that ends a text, that one included."""
    ends = torch.isin(tokens, torch.tensor(special[1], dtype=tokens.dtype, device=tokens.device))
    return ends.cumsum(-1) - ends.long() == 0


def _entropy(log_probs: Tensor) -> Tensor:
    return torch.special.entr(log_probs.exp()).sum(-1)
