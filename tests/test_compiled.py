"""Compiled blocks give the numbers of the blocks themselves, from as good as one graph for all draws and batches."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import fx, nn

from bayeslora_pyro.adapters import compiled_blocks
from bayeslora_pyro.adapters.operators import LinearOperator
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.posterior import Posterior

from .exact import perturb
from .tiny import tiny_batch, tiny_bert, tiny_llama

BASES: dict[str, Callable[[], PeftModel]] = {
    "bert": tiny_bert,
    "last layer of llama": lambda: tiny_llama(num_labels=3, layers_to_transform=[1]),
}
SHAPES = ((5, 7), (4, 7), (3, 9))
FEW = 2
RECENT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
MOST = (
    FEW if RECENT else 2 * len(SHAPES)
)  # torch 2.6 compiles each block for itself, and again for each shape


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Has torch forget what it compiled, before and after."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def posterior_of(peft_model: nn.Module) -> Posterior:
    model = BayesianLora(peft_model, "gaussian", num_data=20)
    return Posterior(model, perturb(MeanFieldGuide(model), 0.1))


class Counter:
    """A compiler that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []

    def __call__(self, graph: fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(graph)
        return graph.forward


def compare(posterior: Posterior, num_draws: int = 4) -> int:
    """Predicts batches of several shapes, compiled and not, and returns the number of graphs."""
    count = Counter()
    for seed, (items, length) in enumerate(SHAPES):
        batches = [tiny_batch(items=items, length=length, seed=seed)]
        wanted = posterior.predict(batches, num_draws, seed).log_probs
        with posterior.compiled(backend=count, fullgraph=True):
            ours = posterior.predict(batches, num_draws, seed).log_probs
        torch.testing.assert_close(ours, wanted)
    return len(count.graphs)


@pytest.mark.parametrize("name", BASES)
def test_one_graph_serves_all_draws_and_shapes(name: str) -> None:
    assert 1 <= compare(posterior_of(BASES[name]())) <= MOST


def test_rows_that_are_compiled_in_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    make = LinearOperator.__init__

    def as_number(operator: Any, weight: torch.Tensor, rows: int | None = None) -> None:
        make(operator, weight, rows)
        operator._rows = SimpleNamespace(shape=(rows,))

    monkeypatch.setattr(LinearOperator, "__init__", as_number)
    assert compare(posterior_of(tiny_bert())) > FEW


def test_blocks_run_compiled_within_the_context_alone() -> None:
    posterior, count, batch = posterior_of(tiny_bert()), Counter(), tiny_batch()
    with pytest.raises(KeyError), posterior.compiled(backend=count):
        raise KeyError
    posterior.predict([batch], 2)
    assert count.graphs == []
    assert not any(
        "_compiled_call_impl" in vars(part) for part in posterior.model.adapter.peft_model.modules()
    )


def test_a_user_s_own_compilation_is_kept() -> None:
    peft_model, mine = tiny_bert(), Counter()
    layer: Any = peft_model.get_base_model().bert.encoder.layer[0]
    layer.compile(backend=mine)
    own = layer._compiled_call_impl
    with compiled_blocks(peft_model, backend=Counter()):
        assert layer._compiled_call_impl is not own
    assert layer._compiled_call_impl is own


def test_a_model_without_blocks_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks"), compiled_blocks(nn.Linear(2, 2)):
        pass
