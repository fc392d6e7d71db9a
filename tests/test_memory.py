"""The table of memory against the bytes that a small model takes."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.runs import optimizer_groups

from .tiny import tiny_batch

ROOT = Path(__file__).resolve().parents[1]
MEMORY = runpy.run_path(str(ROOT / "benchmarks" / "memory.py"))
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 32,
    "max_position_embeddings": 32,
}
RANK, TOKENS = 2, 7


@pytest.fixture(scope="module")
def model() -> BayesianLora:
    from peft import LoraConfig, get_peft_model

    base = LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16)
    config = LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return BayesianLora(get_peft_model(base, config), "gaussian", "next_token", 5)


def told(bits: int = 16) -> Any:
    return MEMORY["memory_of"](LlamaConfig(**SMALL), bits, RANK, TOKENS)


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_the_base_in_16_bits(model: BayesianLora) -> None:
    base = LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16)
    assert told().base == bytes_of(base.parameters())


@pytest.mark.parametrize("bits", [8, 4])
def test_the_base_in_fewer_bits(bits: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from bayeslora_pyro.tasks.bits import quantized

    LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16).save_pretrained(tmp_path)
    options = quantized(f"{bits}bit")  # type: ignore[arg-type]
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, **options)
    taken = bytes_of(base.parameters())
    for part in base.modules():
        weight = getattr(part, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            taken += bytes_of([weight.quant_state.absmax])
        if getattr(weight, "SCB", None) is not None:
            taken += bytes_of([weight.SCB])
    assert told(bits).base == pytest.approx(taken, rel=0.01)
    assert told(16).base > 1.5 * taken


def test_parameters_optimizer_and_a_draw(model: BayesianLora) -> None:
    guide = MeanFieldGuide(model)
    memory = told()
    own = {*model.parameters(), *guide.parameters()}
    assert memory.factors == bytes_of(own)
    optimizer = torch.optim.AdamW(optimizer_groups(model, guide, fit_config()))
    sum(parameter.sum() for parameter in own).backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.dim()]
    assert memory.optimizer == bytes_of(moments) + bytes_of(parameter.grad for parameter in own)
    assert memory.draw == bytes_of(Posterior(model, guide).weights(1).values())


def fit_config() -> Any:
    from bayeslora_pyro.config import FitConfig

    return FitConfig()


def test_what_is_kept_for_a_row_in_training(model: BayesianLora) -> None:
    """With gradient checkpointing, the inputs of the layers are kept, in the precision of the base model."""
    kept: list[torch.Tensor] = []
    guide = MeanFieldGuide(model)
    layers = model.adapter.peft_model.get_base_model().model.layers
    handles = [layer.register_forward_pre_hook(lambda _, args: kept.append(args[0])) for layer in layers]
    batch = tiny_batch("next_token", items=1, length=TOKENS)
    fit(model, guide, [batch], num_steps=1, progress=False)
    for handle in handles:
        handle.remove()
    config = LlamaConfig(**SMALL)
    memory = told()
    logits = 3 * TOKENS * config.vocab_size * 4
    beside = max(2 * MEMORY["live_bytes"](config, TOKENS), logits)
    assert memory.training - beside == bytes_of(kept)


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    memory = MEMORY["Memory"](10**9, 10**7, 3 * 10**7, 10**6, 10**8, 2 * 10**8)
    for training in (False, True):
        count = MEMORY["largest"](memory, 24, training)
        row = memory.training if training else memory.predicting + memory.draw
        beside = memory.base + memory.factors + (memory.optimizer + 3 * memory.draw if training else 0)
        room = 24e9 - 2**30 - beside
        assert count * row <= room < (count + 1) * row
    assert MEMORY["largest"](MEMORY["Memory"](10**11, 0, 0, 1, 1, 1), 80, False) == 0


def test_the_documented_table_is_that_of_the_script() -> None:
    rows = MEMORY["table"](512, 8)
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    for row in rows:
        fits = [
            f"{row['largest'][f'predicting_{d}']:,} / {row['largest'][f'training_{d}']:,}"
            for d in (24, 40, 80)
        ]
        assert f"| {row['model']} | {row['bits']} | {row['base'] / 1e9:.1f} GB |" in text
        assert f"| {' | '.join(fits)} |" in text
