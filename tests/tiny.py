"""Tiny random language models with LoRA, and batches for them.

Test files import it as ``from .tiny import tiny_bert, tiny_llama, tiny_batch``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

VOCABULARY = 32
PAD = 0

Batch = dict[str, Any]


def tiny_bert(
    *,
    rank: int = 2,
    targets: Sequence[str] = ("query", "value"),
    num_labels: int = 3,
    num_layers: int = 2,
    hidden: int = 16,
    dropout: float = 0.0,
    random_b: bool = True,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **lora: Any,
) -> PeftModel:
    """A BERT classifier with LoRA, its classifier in `modules_to_save`; in eval mode.

    By default its factors A are `(rank, hidden)`, its factors B `(hidden, rank)`, `2 * num_layers` of each.

    Args:
        rank: The rank of LoRA.
        targets: The modules that are adapted.
        num_labels: The number of outputs of the head.
        num_layers: The number of layers.
        hidden: The width, a multiple of 2.
        dropout: The dropout probability, of the base model and of LoRA.
        random_b: Whether B starts at random; PEFT's own start is zero.
        dtype: The dtype of the base model and of LoRA.
        attention: How attention is computed; `"eager"` has derivatives of every kind.
        seed: The seed of all parameters.
        lora: Further fields of `LoraConfig`, which win.
    """
    config = BertConfig(
        attn_implementation=attention,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        num_labels=num_labels,
        pad_token_id=PAD,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    options = _options(rank, targets, dropout, random_b) | {"task_type": "SEQ_CLS"} | lora
    return _build(BertForSequenceClassification, config, options, dtype, seed)


def tiny_llama(
    *,
    rank: int = 2,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    num_labels: int | None = None,
    num_layers: int = 2,
    hidden: int = 16,
    dropout: float = 0.0,
    random_b: bool = True,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **lora: Any,
) -> PeftModel:
    """A Llama decoder with LoRA and grouped queries, 4 heads over 2; in eval mode.

    By default its factors B have two shapes: `(hidden, rank)` for queries, `(hidden / 2, rank)` for values.

    Args:
        rank: The rank of LoRA.
        targets: The modules that are adapted.
        num_labels: The number of outputs of a classification head; None for a causal language model.
        num_layers: The number of layers.
        hidden: The width, a multiple of 8.
        dropout: The dropout probability of LoRA.
        random_b: Whether B starts at random; PEFT's own start is zero.
        dtype: The dtype of the base model and of LoRA.
        attention: How attention is computed; `"eager"` has derivatives of every kind.
        seed: The seed of all parameters.
        lora: Further fields of `LoraConfig`, which win.
    """
    config = LlamaConfig(
        attn_implementation=attention,
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=2 * hidden,
        max_position_embeddings=32,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        **({} if num_labels is None else {"num_labels": num_labels}),
    )
    family = LlamaForCausalLM if num_labels is None else LlamaForSequenceClassification
    task_type = "CAUSAL_LM" if num_labels is None else "SEQ_CLS"
    options = _options(rank, targets, dropout, random_b) | {"task_type": task_type} | lora
    return _build(family, config, options, dtype, seed)


def tiny_batch(
    kind: str = "classification",
    *,
    items: int = 5,
    length: int = 7,
    num_labels: int = 3,
    num_options: int = 3,
    seed: int = 0,
) -> Batch:
    """A batch as a collator yields it, padded on the right, with one unpadded item at least.

    Args:
        kind: What the labels are for: `"classification"`, `"regression"`, `"choice"` (label tokens: one row per
            item), `"options"` (option log-likelihoods: one row per option, `item` and `option_mask`),
            `"next_token"`.
        items: The number of items.
        length: The number of tokens of the longest.
        num_labels: The number of classes.
        num_options: The number of options of each item, for `"options"`.
        seed: The seed of tokens, lengths and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = items * num_options if kind == "options" else items
    lengths = torch.randint(3, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    batch: Batch = {"input_ids": tokens.where(mask.bool(), torch.tensor(PAD)), "attention_mask": mask}
    if kind == "next_token":
        return batch | {"labels": batch["input_ids"].where(mask.bool(), torch.tensor(-100))}
    if kind == "regression":
        return batch | {"labels": torch.randn(items, generator=generator)}
    if kind == "options":
        last_two = (torch.arange(length) >= lengths[:, None] - 2) & mask.bool()
        batch |= {"item": torch.arange(items).repeat_interleave(num_options), "option_mask": last_two.long()}
        num_labels = num_options
    return batch | {"labels": torch.randint(num_labels, (items,), generator=generator)}


def _options(rank: int, targets: Sequence[str], dropout: float, random_b: bool) -> dict[str, Any]:
    return {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "lora_dropout": dropout,
        "init_lora_weights": not random_b,
    }


def _build(family: Any, config: Any, options: dict[str, Any], dtype: torch.dtype, seed: int) -> PeftModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft_model = get_peft_model(family(config), LoraConfig(**options))
        _spread(peft_model)
    return peft_model.to(dtype).eval()


def _spread(peft_model: nn.Module) -> None:
    # Freshly made language models put out nearly the same for any input: make this one react.
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.dim() == 2:
                _scale_to(parameter, parameter.shape[-1] ** -0.5)


def _scale_to(parameter: Tensor, target: float) -> None:
    deviation = parameter.std()
    if deviation > 0:
        parameter.mul_(target / deviation)
