"""Base models in bfloat16, 8 and 4 bits: the adapter's mathematics in float32 over them, fitted, saved and loaded."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bayeslora_pyro import laplace_posterior
from bayeslora_pyro.adapters import Adapter
from bayeslora_pyro.curvature import record
from bayeslora_pyro.curvature.structures import jacobian
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.isolation import evaluating
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.tasks import load_base_model

from .cli_files import MOODS, bayeslora, bert, reviews, save_llama, write
from .tiny import tiny_batch

__all__ = ["bert"]

WIDTH = 64
"""In 4 bits, bitsandbytes' kernels for processors want multiples of 32."""

BITS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "8bit": {"quantization": "8bit", "dtype": torch.float32},
    "4bit": {"quantization": "4bit", "dtype": torch.float32},
}
ROUNDING = {"float32": 1e-6, "bfloat16": 2e-2, "8bit": 1e-5, "4bit": 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that is wide enough, with its tokenizer."""
    folder = save_llama(tmp_path_factory.mktemp("models") / "wide-llama")
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.head_dim = WIDTH, 2 * WIDTH, WIDTH // 4
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def base_of(llama: Path, bits: str) -> nn.Module:
    return load_base_model(str(llama), task_type="next_token", **BITS[bits])[0]


def lora_over(llama: Path, bits: str) -> Any:
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(base_of(llama, bits), config)


def drawn(adapter: Adapter) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {s.name: torch.randn(len(s), *s.shape, generator=generator) for s in adapter.stacks}


@pytest.mark.parametrize("bits", BITS)
def test_layers_are_adapted_in_float32_over_any_base(bits: str, llama: Path) -> None:
    peft_model = lora_over(llama, bits).eval()
    adapter = Adapter(peft_model)
    weights = drawn(adapter)
    layer = peft_model.get_base_model().model.layers[1].self_attn.q_proj
    inputs = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(4))
    inputs = inputs.to(BITS[bits].get("dtype", torch.float32))
    with torch.no_grad():
        plain = layer.get_base_layer()(inputs).double()
        with adapter.bind(weights):
            found = layer(inputs)
    factors = {
        stack.role: weights[stack.name][stack.adapters.index(name)].double()
        for stack in adapter.stacks
        for name in stack.adapters
        if name.endswith("layers.1.self_attn.q_proj")
    }
    update = inputs.double() @ factors["A"].mT @ factors["B"].mT
    scale = update.abs().max().item() * 3
    assert found.dtype == inputs.dtype
    torch.testing.assert_close(found.double(), plain + 3 * update, rtol=0, atol=ROUNDING[bits] * scale)
    assert not torch.allclose(found.double(), plain + update, rtol=0, atol=ROUNDING[bits] * scale)


@pytest.mark.parametrize("bits", ["bfloat16", "8bit", "4bit"])
def test_fits_save_and_load_over_any_base(bits: str, llama: Path, tmp_path: Path) -> None:
    model = BayesianLora(lora_over(llama, bits), "gaussian", "next_token", 5)
    guide = MeanFieldGuide(model)
    batch = tiny_batch("next_token")
    Posterior(model, guide).log_likelihood(
        [batch], 1
    )  # a processor's 4 bits are laid out anew in the first pass
    before = {n: p.clone() for n, p in model.adapter.peft_model.named_parameters()}
    result = fit(
        model, guide, [batch], num_steps=12, learning_rate=0.02, kl_weight=0.0, kl_warmup=0.0, progress=False
    )
    scores = [row["expected_log_likelihood"] for row in result.history]
    assert sum(scores[-3:]) > sum(scores[:3])
    assert all(parameter.dtype == torch.float32 for parameter in guide.parameters())
    after = dict(model.adapter.peft_model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    result.posterior.save(tmp_path / "posterior")
    loaded = Posterior.load(tmp_path / "posterior", base_of(llama, bits))
    ours, theirs = (p.log_likelihood([batch], 3, seed=1) for p in (result.posterior, loaded))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_gradients_pass_after_a_prediction(bits: str, llama: Path) -> None:
    """bitsandbytes has a product for predictions alone, to which weights would be laid out anew for good."""
    peft_model = lora_over(llama, bits).eval()
    adapter, batch = Adapter(peft_model), tiny_batch("next_token")

    def gradient() -> dict[str, Tensor]:
        weights = {name: 0.1 * value.requires_grad_() for name, value in drawn(adapter).items()}
        logits = adapter.run_with(weights, batch).logits
        grads = torch.autograd.grad(logits.square().mean(), list(weights.values()))
        return dict(zip(weights, grads, strict=True))

    first = gradient()
    with torch.no_grad():
        adapter.run_with({name: value[:] for name, value in drawn(adapter).items()}, batch)
    for name, value in gradient().items():
        assert value.abs().max() > 0
        torch.testing.assert_close(value, first[name])


def stored_bytes(model: nn.Module) -> int:
    linear = model.model.layers[0].mlp.down_proj
    return linear.weight.numel() * linear.weight.element_size()


def test_fewer_bits_take_fewer_bytes(llama: Path) -> None:
    sizes = [stored_bytes(base_of(llama, bits)) for bits in BITS]
    assert sizes == [4 * 2 * WIDTH**2, 2 * 2 * WIDTH**2, 2 * WIDTH**2, WIDTH**2]


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_without_bitsandbytes_the_extra_is_named(bits: str, llama: Path, monkeypatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else find(name, *rest)
    )
    with pytest.raises(ImportError, match=rf"{bits}.* needs bitsandbytes: pip install .*\[quantization\]"):
        base_of(llama, bits)


def test_other_bits_are_refused(llama: Path) -> None:
    with pytest.raises(ValueError, match="quantization='2bit' is unknown: use '8bit' or '4bit'"):
        load_base_model(str(llama), task_type="next_token", quantization="2bit")  # type: ignore[arg-type]


def test_the_command_fits_and_scores_in_eight_bits(bert: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path / "reviews.csv", reviews(40))
    fit_ = ["fit", "--model", bert, "--data", tmp_path / "reviews.csv", *MOODS, "--num-steps", 2, "--r", 2]
    fit_ += ["--prior.rows", 3, "--prior.cols", 3, "--quantization", "8bit", "--output", tmp_path / "run"]
    assert bayeslora(*fit_) == 0
    assert bayeslora("evaluate", tmp_path / "run", "--num-draws", 2) == 0


@pytest.mark.parametrize("bits", BITS)
def test_curvature_is_recorded_over_any_base(bits: str, llama: Path) -> None:
    """The Jacobians of the recorder are those of autograd through the factors, and the posterior predicts."""
    model = BayesianLora(lora_over(llama, bits), "point", "choice", 5)
    batch = tiny_batch("options")
    leaves = {n: w.clone().requires_grad_() for n, w in drawn(model.adapter).items()}
    with evaluating(model.adapter.peft_model, model), torch.enable_grad():
        kept = record(model, {name: leaf.detach() for name, leaf in leaves.items()}, batch)
        cotangent = torch.randn(kept.scores.shape, generator=torch.Generator().manual_seed(5))
        scores = model.likelihood.scores(model.run_with(leaves, batch), batch)
        wanted = torch.autograd.grad((scores * cotangent).sum(), list(leaves.values()))
        pulled = kept.pull_back(cotangent)
    first = len(wanted[0])
    found = torch.stack([jacobian(kept, pulled, index).sum(0) for index in range(first)])
    scale = wanted[0].abs().max().item()
    torch.testing.assert_close(found, wanted[0], rtol=0, atol=10 * ROUNDING[bits] * scale)
    prediction = laplace_posterior(model, [batch], precision=1.0).predict([batch], 50)
    assert prediction.probs.isfinite().all()
