"""Draws as LoRA adapters of other servers: PEFT's mixed batches, and the folders that vLLM reads."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from bayeslora_pyro.guides import FlowGuide
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.posterior import Posterior

from .test_folders import bare
from .test_posterior import perturbed
from .tiny import tiny_batch, tiny_bert, tiny_llama

DRAWS = 3


def posterior_over(peft_model: PeftModel, likelihood: str) -> Posterior:
    model = BayesianLora(peft_model, InducingPrior(rows=3, cols=3, scale=1.0), likelihood, 20)
    return Posterior(model, perturbed(FlowGuide(model, noise_scale=0.5)))


CASES: dict[str, tuple[Callable[..., PeftModel], str, str]] = {
    "classifier": (tiny_bert, "classification", "classification"),
    "decoder": (tiny_llama, "next_token", "next_token"),
}


def mixed(folders: list[Path], base: nn.Module) -> PeftModel:
    """A PEFT model with one adapter for each folder."""
    peft_model = PeftModel.from_pretrained(base, str(folders[0]), adapter_name="draw-0")
    for index, folder in enumerate(folders[1:], start=1):
        peft_model.load_adapter(str(folder), adapter_name=f"draw-{index}")
    return peft_model.eval()


def logits_of(peft_model: PeftModel, batch: Any, draws: list[int]) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        return peft_model(**inputs, adapter_names=[f"draw-{draw}" for draw in draws]).logits


@pytest.mark.parametrize("case", CASES)
def test_each_row_of_a_mixed_batch_sees_its_draw(case: str, tmp_path: Path) -> None:
    make, likelihood, kind = CASES[case]
    posterior = posterior_over(make(), likelihood)
    peft_model = mixed(posterior.draws(DRAWS, tmp_path / "draws", seed=5), bare(make))
    batch, draws = tiny_batch(kind, items=6), [0, 1, 2, 2, 0, 1]
    ours = []
    for row, draw in enumerate(draws):
        weights = {name: value[0] for name, value in posterior.weights(1, seed=5, first=draw).items()}
        with torch.no_grad():
            ours.append(posterior.model.run_with(weights, batch).logits[row])
    real = batch["attention_mask"].bool() if kind == "next_token" else slice(None)
    theirs = logits_of(peft_model, batch, draws)
    torch.testing.assert_close(theirs[real], torch.stack(ours)[real], rtol=1e-4, atol=1e-5)
    shifted = logits_of(peft_model, batch, [*draws[1:], draws[0]])
    assert not torch.allclose(
        shifted[real], torch.stack(ours)[real], atol=1e-3
    )  # the check tells draws apart


MAX_LORA_RANK = 16
"""vLLM's own, unless `--max-lora-rank` says otherwise."""

NAME = re.compile(r"base_model\.model\.model\.layers\.\d+\.self_attn\.(q_proj|v_proj)\.lora_(A|B)\.weight")


def complaints(folder: Path) -> list[str]:
    """What vLLM would find wrong with a folder, field by field."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    rank = config.get("r")
    checks = {
        "peft_type": config.get("peft_type") == "LORA",
        "r": type(rank) is int and 0 < rank <= MAX_LORA_RANK,
        "lora_alpha": isinstance(config.get("lora_alpha"), int | float),
        "target_modules": sorted(config.get("target_modules", ())) == ["q_proj", "v_proj"],
        "bias": config.get("bias") == "none",
        "modules_to_save": not config.get("modules_to_save"),
        "use_rslora": config.get("use_rslora") is False,
        "use_dora": config.get("use_dora") is False,
        "rank_pattern": not config.get("rank_pattern") and not config.get("alpha_pattern"),
        "names": all(NAME.fullmatch(name) for name in tensors),
        "pairs": {name.replace("lora_A", "lora_B") for name in tensors}
        == {n for n in tensors if "lora_B" in n},
        "shapes": all(rank in (t.shape[0 if "lora_A" in name else 1],) for name, t in tensors.items()),
        "dtype": {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.bfloat16},
        "files": {path.name for path in folder.iterdir()}
        >= {"adapter_config.json", "adapter_model.safetensors"},
    }
    return [name for name, holds in checks.items() if not holds]


@pytest.fixture(scope="module")
def decoder_draws(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return posterior_over(tiny_llama(), "next_token").draws(2, tmp_path_factory.mktemp("vllm") / "draws")


def test_vllm_finds_every_field(decoder_draws: list[Path]) -> None:
    for folder in decoder_draws:
        assert complaints(folder) == []
    config = json.loads((decoder_draws[0] / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "bias": lambda config: config.update(bias="all"),
    "use_dora": lambda config: config.update(use_dora=True),
    "r": lambda config: config.update(r=64),
    "shapes": lambda config: config.update(r=4),
    "modules_to_save": lambda config: config.update(modules_to_save=["score"]),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_folder_that_vllm_refuses_would_be_caught(
    field: str, decoder_draws: list[Path], tmp_path: Path
) -> None:
    for path in decoder_draws[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    WRONG[field](config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert field in complaints(tmp_path)
