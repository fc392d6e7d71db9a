"""What is measured: two real models and two tiny ones, each with LoRA, a batch, and the same loss for both sides."""

from __future__ import annotations

__all__ = ["CASES", "Case", "guide_of", "last_layers"]

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from bayeslora_pyro import BayesianLora, Choice, Classification, FlowGuide, MeanFieldGuide
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.models import Likelihood
from bayeslora_pyro.tasks import load_base_model
from bayeslora_pyro.types import Batch

NUM_OPTIONS, OPTION_TOKENS = 4, 8


@dataclass(frozen=True)
class Case:
    """A PEFT model, a batch, and what plain PEFT does with them.

    Args:
        peft_model: The model; both sides run this one object.
        batch: The batch, on the device of the model.
        likelihood: The likelihood of the Bayesian side; the plain side maximises the same.
    """

    peft_model: PeftModel
    batch: Batch
    likelihood: Likelihood

    def plain_forward(self) -> Any:
        """Runs the PEFT model as it is, for the same logits as the Bayesian side and as it without a cache of keys."""
        inputs = {name: self.batch[name] for name in ("input_ids", "attention_mask")}
        causal = isinstance(self.likelihood, Choice)
        arguments = self.likelihood.model_arguments(self.batch) | ({"use_cache": False} if causal else {})
        return self.peft_model(**inputs, **arguments)

    def plain_loss(self) -> Tensor:
        """The mean negative log-likelihood of the batch, which for a classifier is what PEFT calls its loss."""
        distribution = self.likelihood.distribution(self.plain_forward(), self.batch)
        return -distribution.log_prob(self.batch["labels"]).mean()


def guide_of(model: BayesianLora, name: str) -> Guide:
    """Makes the guide that is measured: `"flow"` or `"mean_field"`."""
    return FlowGuide(model) if name == "flow" else MeanFieldGuide(model)


def last_layers(case: Case, share: float) -> Case:
    """The same with LoRA on a share of the layers, the last ones: rounded down, and one at least."""
    config = case.peft_model.peft_config["default"]
    number = case.peft_model.config.num_hidden_layers
    chosen = list(range(number - max(1, int(share * number)), number))
    targets, device = sorted(config.target_modules), str(case.peft_model.device)
    base_model = case.peft_model.unload()
    return replace(case, peft_model=_with_lora(base_model, targets, config.task_type, device, chosen))


def _with_lora(
    base_model: nn.Module,
    target_modules: list[str],
    task_type: str,
    device: str,
    layers: list[int] | None = None,
) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=target_modules, task_type=task_type, layers_to_transform=layers
    )
    peft_model = get_peft_model(base_model, config).to(device).eval()
    for name, parameter in peft_model.named_parameters():
        if ".lora_B." in name:  # zeros would be no fair work for the processor
            nn.init.normal_(parameter, std=0.02)
    return peft_model


def _tokens(items: int, tokens: int, vocabulary: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocabulary, (items, tokens), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _classification(base_model: nn.Module, items: int, tokens: int, device: str) -> Case:
    batch = _tokens(items, tokens, base_model.config.vocab_size) | {"labels": torch.arange(items) % 2}
    peft_model = _with_lora(base_model, ["query", "value"], "SEQ_CLS", device)
    return Case(peft_model, {name: value.to(device) for name, value in batch.items()}, Classification())


def _choice(base_model: nn.Module, rows: int, tokens: int, device: str) -> Case:
    """Questions of four options, one row per option, whose last eight tokens are scored."""
    batch = _tokens(rows, tokens, base_model.config.vocab_size)
    batch["option_mask"] = torch.zeros(rows, tokens, dtype=torch.long)
    batch["option_mask"][:, -OPTION_TOKENS:] = 1
    batch["item"] = torch.arange(rows) // NUM_OPTIONS
    batch["labels"] = torch.arange(rows // NUM_OPTIONS) % NUM_OPTIONS
    peft_model = _with_lora(base_model, ["q_proj", "v_proj"], "CAUSAL_LM", device)
    return Case(peft_model, {name: value.to(device) for name, value in batch.items()}, Choice())


def _minilm(device: str) -> Case:
    base_model, _ = load_base_model("minilm", task_type="classification", num_labels=2)
    return _classification(base_model, 16, 64, device)


def _smollm2(device: str) -> Case:
    base_model, _ = load_base_model("smollm2", task_type="choice")
    return _choice(base_model, 8, 64, device)


def _tiny(device: str) -> Case:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return _classification(BertForSequenceClassification(BertConfig(**sizes, vocab_size=99)), 4, 8, device)


def _tiny_decoder(device: str) -> Case:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    base_model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=99))
    return _choice(base_model, 8, 16, device)


CASES: dict[str, Callable[[str], Case]] = {
    "minilm": _minilm,
    "smollm2": _smollm2,
    "tiny": _tiny,
    "tiny-decoder": _tiny_decoder,
}
"""The cases by name, each made on a device; a run without names measures the first two."""
