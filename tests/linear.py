"""Linear regression as a language model with one LoRA layer, whose posterior is known."""

from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from .exact import rand


class LinearLanguageModel(nn.Module):
    """One frozen linear map of the input."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, 1, bias=False)

    def forward(self, inputs_embeds: torch.Tensor) -> SimpleNamespace:
        """The outputs as a regression head would give them."""
        return SimpleNamespace(logits=self.layer(inputs_embeds))


def linear_lora(features: int = 4, rank: int = 2, seed: int = 0) -> PeftModel:
    """A linear model with a LoRA of random factors, in float64."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"])
    with torch.random.fork_rng():
        peft_model = get_peft_model(LinearLanguageModel(features), config).double().eval()
    with torch.no_grad():
        for index, parameter in enumerate(peft_model.parameters()):
            parameter.copy_(rand(*parameter.shape, seed=seed + index))
    return peft_model


def linear_data(items: int = 9, features: int = 4, seed: int = 5) -> dict[str, Any]:
    """Inputs and targets."""
    return {"inputs_embeds": rand(items, features, seed=seed), "labels": rand(items, seed=seed + 1)}
