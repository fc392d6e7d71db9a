"""The number of parameters: small beside LoRA's, as published, and known without a real model."""

from functools import cache

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from bayeslora_pyro import (
    BayesianLora,
    DeltaGuide,
    FlowGuide,
    InducingPrior,
    MeanFieldGuide,
    PointPrior,
)
from bayeslora_pyro.parameters import count_parameters

ROWS = COLS = 9
RANK = 8
PUBLISHED_EXTRA = 418_690  # Bayesian-LoRA on LLaMA-2-7B, q_proj and lm_head; its flow has 1,554 parameters
PUBLISHED_FLOW, FLOW = 1_554, 738


def llama(**sizes: int) -> nn.Module:
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes))


@cache
def llama2_7b() -> nn.Module:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000}
    config = LoraConfig(r=RANK, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    return get_peft_model(llama(**sizes, num_attention_heads=32), config)


@cache
def smollm2() -> nn.Module:
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
    config = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(llama(**sizes, **heads), config)


@cache
def minilm() -> nn.Module:
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12}
    with torch.device("meta"):
        base_model = BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
    config = LoraConfig(r=RANK, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(base_model, config)


def per_factor(shape: tuple[int, int]) -> int:
    """Locations and nuggets of both sides, mean and deviation of V, the scales of prior and noise: all but the flow."""
    d_o, d_i = shape
    return ROWS * (d_o + 1) + COLS * (d_i + 1) + 2 * ROWS * COLS + 2


MODELS = {
    # PEFT model, factors by shape, parameters of the head, the least and most extra as a share of LoRA's
    "llama2-7b": (llama2_7b, {(8, 4096): 33, (4096, 8): 32, (32000, 8): 1}, 0, 0.16),
    "smollm2": (smollm2, {(8, 576): 60, (576, 8): 30, (192, 8): 30}, 0, 0.41),
    "minilm": (minilm, {(8, 384): 12, (384, 8): 12}, 2 * 384 + 2, 0.47),
}


@pytest.fixture(scope="module", params=MODELS)
def counted(request: pytest.FixtureRequest) -> tuple[BayesianLora, dict[tuple[int, int], int], int, float]:
    make, factors, head, share = MODELS[request.param]
    return BayesianLora(make(), InducingPrior(rows=ROWS, cols=COLS)), factors, head, share


@pytest.mark.parametrize(
    ("guide", "flow"), [(FlowGuide, FLOW), (MeanFieldGuide, 0)], ids=["flow", "mean field"]
)
def test_counts_are_those_of_the_method(counted, guide: type, flow: int) -> None:
    model, factors, head, _ = counted
    counts = count_parameters(model, guide(model))
    ours = sum(number * (per_factor(shape) + flow) for shape, number in factors.items())
    assert {stack.shape: len(stack) for stack in model.stacks} == factors
    assert counts.lora == sum(number * d_o * d_i for (d_o, d_i), number in factors.items())
    assert counts.head == head
    assert counts.total == ours + head
    assert counts.extra == ours - counts.lora


def test_lora_counts_are_those_of_peft(counted) -> None:
    model, *_ = counted
    counts = count_parameters(model, FlowGuide(model))
    trainable, _ = model.adapter.peft_model.get_nb_trainable_parameters()
    assert counts.lora + counts.head == trainable


def test_extra_is_a_fraction_of_lora(counted) -> None:
    model, _, _, share = counted
    counts = count_parameters(model, FlowGuide(model))
    assert 0 < counts.extra <= share * counts.lora


def test_extra_on_llama2_7b_is_below_the_published_number() -> None:
    model = BayesianLora(llama2_7b(), InducingPrior(rows=ROWS, cols=COLS))
    extra = count_parameters(model, FlowGuide(model)).extra
    assert extra <= 420_000
    # The rest is as published: the same but for the flow, and for a useless deviation per location that it has.
    num_factors = sum(len(stack) for stack in model.stacks)
    assert extra == PUBLISHED_EXTRA - num_factors * (PUBLISHED_FLOW - FLOW + ROWS + COLS - 1)


@pytest.mark.parametrize("guide", [FlowGuide, MeanFieldGuide, DeltaGuide])
def test_nothing_leaves_the_meta_device(guide: type) -> None:
    model = BayesianLora(smollm2(), InducingPrior(rows=ROWS, cols=COLS))
    modules = (model, guide(model))
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_point_has_no_more_parameters_than_lora() -> None:
    model = BayesianLora(minilm(), PointPrior())
    counts = count_parameters(model, DeltaGuide(model))
    assert counts.extra == 0
    assert counts.total == counts.lora + counts.head


def test_frozen_parameters_do_not_count() -> None:
    model = BayesianLora(minilm(), InducingPrior(rows=ROWS, cols=COLS))
    guide = FlowGuide(model)
    before = count_parameters(model, guide)
    for parameter in model.priors.parameters():
        parameter.requires_grad_(False)
    frozen = sum(parameter.numel() for parameter in model.priors.parameters())
    assert count_parameters(model, guide).total == before.total - frozen


def test_shared_parameters_count_once() -> None:
    model = BayesianLora(minilm(), InducingPrior(rows=ROWS, cols=COLS))
    guide = FlowGuide(model)
    before = count_parameters(model, guide)
    guide.borrowed = next(iter(model.priors.parameters()))
    assert count_parameters(model, guide) == before
