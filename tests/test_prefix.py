"""What comes before the first random factor is computed once, and gives what the whole model gives draw by draw."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from bayeslora_pyro.adapters import prefix as prefix_module
from bayeslora_pyro.guides import GUIDES
from bayeslora_pyro.models import BayesianLora, Choice, GaussianPrior
from bayeslora_pyro.posterior import Posterior

from .exact import close, perturb, rand
from .tiny import tiny_batch, tiny_bert, tiny_llama

LAYERS, DRAWS = 4, 5


def posterior_of(
    peft_model: nn.Module, prior: Any = "gaussian", likelihood: Any = "classification"
) -> Posterior:
    model = BayesianLora(peft_model.double(), prior, likelihood, 20).double()
    return Posterior(model, perturb(GUIDES["mean_field"](model).double(), 0.1))


def last(count: int, family: Any = tiny_bert, **options: Any) -> PeftModel:
    """A tiny model whose last layers are adapted."""
    chosen = list(range(LAYERS - count, LAYERS))
    return family(num_layers=LAYERS, dtype=torch.float64, layers_to_transform=chosen, **options)


CASES = {
    "bert": (lambda: posterior_of(last(1)), "classification", 3),
    "bert, half": (lambda: posterior_of(last(2)), "classification", 2),
    "llama": (lambda: posterior_of(last(1, tiny_llama), likelihood=Choice((5, 6, 7))), "choice", 3),
    "llama, options": (lambda: posterior_of(last(1, tiny_llama), likelihood=Choice()), "options", 3),
    "llama, a text": (lambda: posterior_of(last(1, tiny_llama), likelihood="next_token"), "next_token", 3),
    "llama, a head": (lambda: posterior_of(last(1, tiny_llama, num_labels=3)), "classification", 3),
    "all adapted, the last random": (
        lambda: posterior_of(tiny_bert(num_layers=LAYERS), {"*.layer.3.*": GaussianPrior(), "AB": "point"}),
        "classification",
        3,
    ),
    "noise that depends on the item": (
        lambda: noisy(last(2)),
        "classification",
        2,
    ),
    "all random": (lambda: posterior_of(tiny_bert(num_layers=LAYERS)), "classification", 0),
}
"""Posteriors, the kind of their batches, and how many blocks come before the first random factor."""


def noisy(peft_model: PeftModel) -> Posterior:
    prior = {"A": "relative_noise", "B": "point"}
    model = BayesianLora(peft_model.double(), prior, "classification", 20).double()
    return Posterior(model, GUIDES["amortised_noise"](model).double())


def scores(posterior: Posterior, batch: dict[str, Any]) -> Tensor:
    return posterior.log_likelihood([batch], DRAWS, seed=3)


def plainly(posterior: Posterior, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr("bayeslora_pyro.adapters.adapter.find_prefix", lambda *_: None)
        return scores(posterior, batch)


def blocks_of(posterior: Posterior) -> list[nn.Module]:
    lists = (m for m in posterior.model.adapter.peft_model.modules() if isinstance(m, nn.ModuleList))
    return list(next(blocks for blocks in lists if len(blocks) == LAYERS))


def rows_of_passes(posterior: Posterior, batch: dict[str, Any]) -> list[list[int]]:
    """The numbers of rows that each block really computes."""
    rows: list[list[int]] = []
    blocks = blocks_of(posterior)
    attention = [
        next(m for n, m in block.named_modules() if n.endswith(("attn", "attention.self")))
        for block in blocks
    ]
    handles = []
    for module in attention:
        rows.append([])
        handles.append(
            module.register_forward_pre_hook(
                lambda _m, args, kwargs, seen=rows[-1]: seen.append(len([*args, *kwargs.values()][0])),
                with_kwargs=True,
            )
        )
    scores(posterior, batch)
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("budget", [1, 2**30], ids=["one draw a pass", "all draws in a pass"])
@pytest.mark.parametrize("case", CASES)
def test_shared_equals_plain_draw_by_draw(case: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make, kind, num_shared = CASES[case]
    posterior, batch = make(), tiny_batch(kind)
    monkeypatch.setattr("bayeslora_pyro.tiling._default_budget", lambda _: budget)
    rows = rows_of_passes(posterior, batch)
    items = len(batch["input_ids"])
    once, passes = [items], [items] * DRAWS if budget == 1 else [DRAWS * items]
    assert rows == [once] * num_shared + [passes] * (LAYERS - num_shared)
    close(scores(posterior, batch), plainly(posterior, batch, monkeypatch), 1e-12)
    if not posterior.depends_on_items:
        weights = posterior.weights(DRAWS, seed=3)
        for draw in range(DRAWS):
            one = {name: values[draw] for name, values in weights.items()}
            with torch.no_grad():
                outputs = posterior.model.run_with(one, batch)
                likelihood = posterior.model.likelihood
                wanted = likelihood.distribution(outputs, batch).log_prob(likelihood.observed(batch))
            close(scores(posterior, batch)[draw], wanted, 1e-12)


def test_the_model_is_left_as_it_was() -> None:
    posterior, batch = CASES["bert"][0](), tiny_batch()
    blocks, before = blocks_of(posterior), [dict(vars(block)) for block in blocks_of(posterior)]
    blocks[0].forward = own = blocks[0].forward  # such as accelerate's
    scores(posterior, batch)
    assert vars(blocks[0]).pop("forward") is own
    assert [dict(vars(block)) for block in blocks] == before
    broken = {name: value for name, value in batch.items() if name != "labels"} | {
        "position_ids": torch.ones(1, 99).long()
    }
    with pytest.raises((RuntimeError, IndexError)):
        posterior.predict([broken], DRAWS)
    assert [dict(vars(block)) for block in blocks] == before


def test_planted_faults_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, batch = CASES["bert, half"][0](), tiny_batch()
    wanted = plainly(posterior, batch, monkeypatch)

    def interleaved(output: Any, count: int) -> Any:
        if isinstance(output, tuple):  # as transformers 4.56 has it
            return tuple(interleaved(part, count) for part in output)
        return None if output is None else output.repeat_interleave(count, 0)

    with monkeypatch.context() as patch:
        patch.setattr(prefix_module, "_tiled", interleaved)
        assert (scores(posterior, batch) - wanted).abs().max() > 1e-3
    with monkeypatch.context() as patch:  # a factor that differs between draws counted as shared
        patch.setattr(
            "bayeslora_pyro.passes.varying", lambda w: {name: [False] * 2 + [True] * 2 for name in w}
        )
        assert (scores(posterior, batch) - wanted).abs().max() > 1e-3


class Block(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.linear, self.form = nn.Linear(6, 6), form

    def forward(self, hidden: Tensor) -> Any:
        out = hidden + self.linear(hidden).tanh()
        if self.form == "in place":
            return hidden.copy_(out)
        if self.form == "a tuple":
            return out, None
        return SimpleNamespace(out=out) if self.form == "something else" else out


FORMS = {
    "plain": True,
    "a tuple": True,
    "in place": False,
    "changed in place": False,
    "skips": True,
    "reads all": True,
    "changes what it has read": True,
    "something else": False,
    "twice": False,
    "backwards": False,
    "tokens first": False,
    "random before": False,
}
"""Ways to put blocks together, and whether something is shared."""


class Stack(nn.Module):
    """Four blocks, put together in one of several ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.first = form, nn.Linear(6, 6)
        self.blocks = nn.ModuleList(Block(form) for _ in range(LAYERS))

    def forward(self, inputs_embeds: Tensor) -> SimpleNamespace:
        hidden = self.first(inputs_embeds) if self.form == "random before" else 1.0 * inputs_embeds
        hidden = hidden.transpose(0, 1) if self.form == "tokens first" else hidden
        blocks = list(self.blocks)
        blocks = blocks[::-1] if self.form == "backwards" else 2 * blocks if self.form == "twice" else blocks
        seen = []
        for block in blocks:
            out = block(hidden)
            out = out[0] if self.form == "a tuple" else out.out if self.form == "something else" else out
            hidden = out + seen[0] if self.form == "skips" and len(seen) == 3 else out
            hidden = hidden.add_(inputs_embeds) if self.form == "changed in place" else hidden
            seen.append(hidden)
        if self.form == "changes what it has read":
            seen[0].add_(1.0)
        hidden = sum(seen) if self.form in ("reads all", "changes what it has read") else hidden
        hidden = hidden.transpose(0, 1) if self.form == "tokens first" else hidden
        return SimpleNamespace(logits=hidden[:, 0, :3])


@pytest.mark.parametrize("items", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_shared_only_where_it_is_right(
    form: str, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = ["blocks.3.linear", *(["first"] if form == "random before" else [])]
    peft_model = get_peft_model(Stack(form), LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    posterior = posterior_of(peft_model.eval())
    batch = {"inputs_embeds": rand(items, 3, 6), "labels": torch.arange(items) % 3}
    shared = []
    replayed = prefix_module.Prefix.replayed
    monkeypatch.setattr(
        prefix_module.Prefix, "replayed", lambda self, *a: (shared.append(self), replayed(self, *a))[1]
    )
    budgets = [2**30, 1]  # all draws in one pass, and each in one of its own
    if form == "tokens first":  # several draws at once would be wrong
        with pytest.raises(ValueError, match=r"need activations whose first dimension .* memory_budget=1"):
            posterior.predict([batch], DRAWS, memory_budget=budgets.pop(0))
    found = [posterior.predict([batch], DRAWS, seed=3, memory_budget=each).log_probs for each in budgets]
    assert bool(shared) == FORMS[form] or form in ("twice", "tokens first")  # these are noticed on the way
    with monkeypatch.context() as patch:
        patch.setattr("bayeslora_pyro.adapters.adapter.find_prefix", lambda *_: None)
        wanted = posterior.predict([batch], DRAWS, seed=3, memory_budget=1).log_probs
    for each in found:
        close(each, wanted, 1e-12)
