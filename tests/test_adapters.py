"""Adapters: found, bound for a moment, and given back bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from bayeslora_pyro.adapters import Adapter
from bayeslora_pyro.models import BayesianLora

from .tiny import Batch, tiny_batch, tiny_bert, tiny_llama


def inputs(batch: Batch) -> Batch:
    return {name: value for name, value in batch.items() if name != "labels"}


def draws_around(adapter: Adapter, count: int | None = None, seed: int = 1) -> dict[str, Tensor]:
    """The factors of the PEFT model with some noise, so that they are recognised."""
    generator = torch.Generator().manual_seed(seed)
    lead = () if count is None else (count,)
    return {
        name: weight + 0.1 * torch.randn(*lead, *weight.shape, generator=generator)
        for name, weight in adapter.lora_weights().items()
    }


def checkpoint_gradients(peft_model: PeftModel, arguments: dict[str, Any] | None = None) -> None:
    """Turns gradient checkpointing on, by its old name or its new one."""
    base = peft_model.get_base_model()
    new = hasattr(base, "activation_checkpointing_enable")
    (base.activation_checkpointing_enable if new else base.gradient_checkpointing_enable)(arguments)


def with_factors(peft_model: PeftModel, adapter: Adapter, weights: dict[str, Tensor], batch: Batch) -> Tensor:
    """The logits of PEFT's own forward pass, after factors were written into its own parameters."""
    leaves = dict(peft_model.named_parameters())
    with torch.no_grad():
        for stack in adapter.stacks:
            for name, weight in zip(stack.adapters, weights[stack.name], strict=True):
                leaves[f"base_model.model.{name}.lora_{stack.role}.default.weight"].copy_(weight)
        return peft_model(**inputs(batch)).logits


def snapshot(peft_model: PeftModel) -> dict[str, Any]:
    """All that may be changed of a PEFT model."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return {
        "modules": [(name, id(module)) for name, module in peft_model.named_modules()],
        "attributes": [
            {n: repr(v) for n, v in vars(m).items() if n[:2] != "_m"} for m in peft_model.modules()
        ],
        "parameters": [(name, id(p), p.requires_grad) for name, p in peft_model.named_parameters()],
        "values": {name: value.clone() for name, value in peft_model.state_dict().items()},
        "training": [module.training for module in peft_model.modules()],
        "hooks": [len(vars(module)[hook]) for module in peft_model.modules() for hook in hooks],
        "active": peft_model.active_adapters,
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    values, again = before.pop("values"), after.pop("values")
    assert before == after
    assert values.keys() == again.keys()
    assert all(torch.equal(values[name], again[name]) for name in values)


MODELS: dict[str, tuple[Callable[[], PeftModel], str, dict[str, int]]] = {
    "bert": (tiny_bert, "classification", {"A_2x16": 4, "B_16x2": 4}),
    "grouped-queries": (tiny_llama, "next_token", {"A_2x16": 4, "B_16x2": 2, "B_8x2": 2}),
    "decoder-classifier": (
        lambda: tiny_llama(num_labels=3),
        "classification",
        {"A_2x16": 4, "B_16x2": 2, "B_8x2": 2},
    ),
    "shapes": (
        lambda: tiny_bert(
            targets=("query", "intermediate.dense", "output.dense"), modules_to_save=["pooler"]
        ),
        "classification",
        {"A_2x16": 6, "A_2x32": 2, "B_16x2": 6, "B_32x2": 2},
    ),
    "some-layers": (
        lambda: tiny_llama(num_layers=3, layers_to_transform=[0, 2]),
        "next_token",
        {"A_2x16": 4, "B_16x2": 2, "B_8x2": 2},
    ),
    "rank-pattern": (
        lambda: tiny_bert(rank_pattern={"value": 3}, alpha_pattern={"query": 5}),
        "classification",
        {"A_2x16": 2, "A_3x16": 2, "B_16x2": 2, "B_16x3": 2},
    ),
    "rank-stabilised": (lambda: tiny_bert(use_rslora=True), "classification", {"A_2x16": 4, "B_16x2": 4}),
}


@pytest.mark.parametrize("case", MODELS)
def test_runs_with_the_given_factors(case: str) -> None:
    make, kind, expected = MODELS[case]
    peft_model, batch = make(), tiny_batch(kind)
    adapter = Adapter(peft_model)
    assert {stack.name: len(stack) for stack in adapter.stacks} == expected
    own = adapter.run_with(adapter.lora_weights(), batch).logits
    assert torch.equal(own, peft_model(**inputs(batch)).logits)
    weights = draws_around(adapter)
    ours = adapter.run_with(weights, batch).logits
    assert not torch.allclose(ours, own, atol=1e-3)
    torch.testing.assert_close(ours, with_factors(peft_model, adapter, weights, batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", MODELS)
def test_tiles_equal_single_passes(case: str) -> None:
    make, kind, _ = MODELS[case]
    adapter, batch = Adapter(make()), tiny_batch(kind)
    weights = draws_around(adapter, count=3)
    tiled = adapter.run_with(weights, batch).logits
    tiled = tiled.reshape(3, -1, *tiled.shape[1:])
    for draw in range(3):
        single = adapter.run_with({name: weight[draw] for name, weight in weights.items()}, batch).logits
        torch.testing.assert_close(tiled[draw], single, rtol=0, atol=1e-6)
    swapped = adapter.run_with({name: weight.flip(0) for name, weight in weights.items()}, batch).logits
    assert not torch.allclose(swapped.reshape(tiled.shape)[0], tiled[0], atol=1e-3)


def test_stacks_of_different_numbers_of_draws_are_refused() -> None:
    adapter = Adapter(tiny_bert())
    weights = draws_around(adapter, count=3)
    weights["A_2x16"] = weights["A_2x16"][:2]
    with pytest.raises(ValueError, match=r"stacks of \[2, 3\] draws"):
        adapter.run_with(weights, tiny_batch())


@pytest.mark.parametrize("case", ["bert", "grouped-queries"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_gives_the_model_back_bit_for_bit(case: str, fails: bool) -> None:
    make, kind, _ = MODELS[case]
    peft_model, batch = make(), tiny_batch(kind)
    checkpoint_gradients(peft_model)
    before = snapshot(peft_model)
    adapter = Adapter(peft_model)
    head = {name: value + 1 for name, value in adapter.head_parameters().items()}
    adapter.run_with(draws_around(adapter), batch, head)
    if fails:
        with pytest.raises(IndexError):
            adapter.run_with(draws_around(adapter), {"input_ids": torch.tensor([[10_000]])}, head)
    assert_same(before, snapshot(peft_model))


def test_a_snapshot_notices_a_slot_left_behind() -> None:
    peft_model = tiny_bert()
    before = snapshot(peft_model)
    layer = peft_model.base_model.model.bert.encoder.layer[0].attention.self.query
    layer.lora_A._modules["default"] = nn.Linear(16, 2, bias=False)
    with pytest.raises(AssertionError):
        assert_same(before, snapshot(peft_model))


def two_adapters(**second: Any) -> PeftModel:
    """A BERT with the adapters `default`, which is active, and `second`."""
    peft_model = tiny_bert()
    options = {"r": 3, "target_modules": ["value"], "init_lora_weights": False, "task_type": "SEQ_CLS"}
    peft_model.add_adapter("second", LoraConfig(**options | second))
    return peft_model.eval()


@pytest.mark.parametrize("disabled", [False, True], ids=["enabled", "disabled"])
def test_chooses_an_inactive_adapter(disabled: bool) -> None:
    peft_model, batch = two_adapters(), tiny_batch()
    adapter = Adapter(peft_model, "second")
    assert [(stack.name, len(stack)) for stack in adapter.stacks] == [("A_3x16", 2), ("B_16x3", 2)]
    if disabled:
        peft_model.base_model.disable_adapter_layers()
    before = snapshot(peft_model)
    head = adapter.head_parameters()
    assert len(head) == 2
    assert all(".second." in name for name in head)
    ours = adapter.run_with(adapter.lora_weights(), batch, head).logits
    assert_same(before, snapshot(peft_model))
    peft_model.set_adapter("second")
    peft_model.base_model.enable_adapter_layers()
    assert torch.equal(ours, peft_model(**inputs(batch)).logits)


def test_several_active_adapters_have_to_be_told_apart() -> None:
    peft_model = tiny_llama()  # of heads, PEFT lets only one be active
    peft_model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    peft_model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match=r"adapter_name must be given.*default, second"):
        Adapter(peft_model)


def test_base_is_no_part_of_the_model() -> None:
    peft_model = tiny_bert()
    model = BayesianLora(peft_model, num_data=8)
    base = {id(parameter) for parameter in peft_model.parameters()}
    assert not base & {id(parameter) for parameter in model.parameters()}
    assert not [name for name in model.state_dict() if "base_model" in name or "encoder" in name]
    assert not [module for module in model.modules() if isinstance(module, PeftModel)]


REFUSED: dict[str, tuple[Callable[[], PeftModel], str]] = {
    "dora": (lambda: tiny_bert(use_dora=True), "LoRA variant Dora.*use_dora=False"),
    "embedding": (
        lambda: tiny_bert(targets=("query", "word_embeddings")),
        "word_embeddings' is no linear layer.*Leave it out",
    ),
    "factor-with-bias": (lambda: tiny_bert(lora_bias=True), "bias on its factor B.*lora_bias=False"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_is_no_product_of_linear_maps(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        Adapter(make())


class Convolutional(PreTrainedModel):
    """A model with a convolution."""

    config_class = PretrainedConfig

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.convolution = nn.Conv1d(3, 4, 2)
        self.linear = nn.Linear(4, 2)
        self.post_init()


def test_refuses_a_convolution() -> None:
    with pytest.raises(ValueError, match="'convolution' is no linear layer"):
        Adapter(get_peft_model(Convolutional(), LoraConfig(r=2, target_modules=["convolution"])))


def test_refuses_a_merged_adapter_whenever_it_was_merged() -> None:
    peft_model = tiny_bert()
    adapter = Adapter(peft_model)
    peft_model.merge_adapter()
    for use in (lambda: Adapter(peft_model), lambda: adapter.run_with(adapter.lora_weights(), tiny_batch())):
        with pytest.raises(ValueError, match=r"merged into the base. Call peft_model.unmerge_adapter"):
            use()
    peft_model.unmerge_adapter()
    adapter.run_with(adapter.lora_weights(), tiny_batch())


def test_without_lora_layers_names_what_could_be_targeted() -> None:
    peft_model = get_peft_model(
        tiny_bert().unload(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    )
    with pytest.raises(ValueError, match=r"no LoRA layer.*can be targeted: .*dense.*key.*query.*value"):
        Adapter(peft_model)


def test_unknown_adapter_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"adapter_name='third' has no LoRA layer.*default, second"):
        Adapter(two_adapters(), "third")


def test_refuses_a_bare_base_model() -> None:
    with pytest.raises(TypeError, match=r"BertForSequenceClassification, and no PeftModel.*get_peft_model"):
        Adapter(tiny_bert().get_base_model())


def test_the_layer_of_the_vocabulary_sees_its_inputs_side_by_side() -> None:
    peft_model, batch, whole = tiny_llama(), tiny_batch("next_token"), []
    adapter, layer = Adapter(peft_model), peft_model.get_base_model().lm_head
    before = snapshot(peft_model)
    own = layer.register_forward_hook(lambda _module, given, _outputs: whole.append(given[0].is_contiguous()))
    ours = adapter.run_with(adapter.lora_weights(), batch, logits_to_keep=3).logits
    peft = peft_model(**inputs(batch), logits_to_keep=3).logits
    own.remove()
    assert whole == [True, False]  # transformers gives the last tokens of each row, with gaps between rows
    torch.testing.assert_close(ours, peft, rtol=0, atol=1e-6)
    assert_same(before, snapshot(peft_model))
