"""The memory that larger models take: arithmetic over models on the meta device, where a model of any size is free."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from bayeslora_pyro import BayesianLora, MeanFieldGuide
from bayeslora_pyro.parameters import count_parameters

SHAPES = {
    "7B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
    },
    "13B": {
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "intermediate_size": 13824,
    },
    "30B": {
        "hidden_size": 6656,
        "num_hidden_layers": 60,
        "num_attention_heads": 52,
        "intermediate_size": 17920,
    },
}
"""The shapes of LLaMA."""

BITS = {16: 16.0, 8: 8.0, 4: 4.0 + 32 / 64}
"""Bits per weight of a linear layer: in 4 bits there is a float32 scale for each 64 weights."""

DEVICES = (24, 40, 80)
"""Gigabytes of memory."""

GIB = 2**30
RESERVED = 1.0
"""Gibibytes for the context of the device and what its allocator cannot use."""

HALF, SINGLE = 2, 4


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Args:
        base: The base model: linear layers in few bits, embeddings, norms and head in 16.
        factors: The parameters of prior and guide.
        optimizer: Their gradients and both moments of Adam.
        draw: One draw of all factors.
        predicting: The activations of one row in a forward pass without gradients.
        training: Those of one row of a training step, where each layer is computed again in the backward pass.
    """

    base: int
    factors: int
    optimizer: int
    draw: int
    predicting: int
    training: int


def memory_of(config: Any, bits: int, rank: int, tokens: int) -> Memory:
    """The memory of one shape.

    Args:
        config: The configuration of a Llama.
        bits: The bits of a linear layer.
        rank: The rank of LoRA, on queries and values.
        tokens: The number of tokens of a row.
    """
    with torch.device("meta"):
        base_model: Any = LlamaForCausalLM(config)
        base = base_bytes(base_model, bits)
        lora = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = BayesianLora(get_peft_model(base_model, lora), "gaussian", "next_token", 1)
        counts = count_parameters(model, MeanFieldGuide(model))
    layer = live_bytes(config, tokens)
    logits = 3 * tokens * config.vocab_size * SINGLE
    kept = config.num_hidden_layers * tokens * config.hidden_size * HALF
    return Memory(
        base=base,
        factors=counts.total * SINGLE,
        optimizer=3 * counts.total * SINGLE,
        draw=counts.lora * SINGLE,
        predicting=max(layer, logits),
        training=kept + max(2 * layer, logits),
    )


def base_bytes(model: nn.Module, bits: int) -> int:
    """The bytes of a model whose linear layers but the head are kept in so many bits, all else in 16."""
    total = 0.0
    for name, parameter in model.named_parameters():
        is_linear = parameter.dim() == 2 and "embed" not in name and "lm_head" not in name
        total += parameter.numel() * (BITS[bits] if is_linear else 16) / 8
        if bits == 8 and is_linear:
            total += parameter.shape[0] * SINGLE  # a scale for each row
    return int(total)


def live_bytes(config: Any, tokens: int) -> int:
    """What one layer holds at once for one row: some tensors of hidden size, the widest twice, no attention matrix."""
    return tokens * (6 * config.hidden_size + 2 * config.intermediate_size) * HALF


def largest(memory: Memory, gigabytes: int, training: bool) -> int:
    """The largest batch times draws that fits; 0 where not even one row does.

    In prediction each row of each draw takes a draw of the factors in the worst case, of one row per draw. In training
    the draws that share a batch take no rows of their own: one draw's factors, with what its gradient keeps.
    """
    room = gigabytes * 1e9 - RESERVED * GIB - memory.base - memory.factors
    if training:
        room -= memory.optimizer + 3 * memory.draw
        return max(0, int(room // memory.training))
    return max(0, int(room // (memory.predicting + memory.draw)))


def table(tokens: int, rank: int) -> list[dict[str, Any]]:
    """All rows."""
    rows = []
    for name, shape in SHAPES.items():
        for bits in BITS:
            memory = memory_of(LlamaConfig(**shape), bits, rank, tokens)
            fits = {
                f"{kind}_{size}": largest(memory, size, kind == "training")
                for size in DEVICES
                for kind in ("predicting", "training")
            }
            rows.append({"model": name, "bits": bits, **asdict(memory), "largest": fits})
    return rows


def main() -> None:
    """Prints a table in Markdown, or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--tokens", type=int, default=512, help="the tokens of a row (default: 512)")
    parser.add_argument("--rank", type=int, default=8, help="the rank of LoRA (default: 8)")
    options = parser.parse_args()
    rows = table(options.tokens, options.rank)
    if options.json:
        print(json.dumps({"rows": rows, "tokens": options.tokens, "rank": options.rank}))
        return
    head = ["model", "bits", "base", "factors", "optimizer", "a draw", "a row, predicting", "a row, training"]
    print(f"| {' | '.join([*head, *(f'{size} GB' for size in DEVICES)])} |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for row in rows:
        sizes = [f"{row['base'] / 1e9:.1f} GB"]
        sizes += [f"{row[name] / 1e6:.0f} MB" for name in list(asdict(Memory(0, 0, 0, 0, 0, 0)))[1:]]
        fits = [
            f"{row['largest'][f'predicting_{d}']:,} / {row['largest'][f'training_{d}']:,}" for d in DEVICES
        ]
        print(f"| {row['model']} | {row['bits']} | {' | '.join(sizes)} | {' | '.join(fits)} |")


if __name__ == "__main__":
    main()
