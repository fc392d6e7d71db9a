"""Against an independent implementation, laplace-torch with curvlinops, on a tiny decoder and a tiny encoder."""

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

from bayeslora_pyro import BayesianLora, Regression, laplace_posterior
from bayeslora_pyro.curvature import Full, accumulate, record
from bayeslora_pyro.isolation import evaluating

from .laplace_cases import facts, moments
from .tiny import VOCABULARY, tiny_bert, tiny_llama

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

DOUBLE = torch.float64
FAMILIES: dict[str, Any] = {"encoder": tiny_bert, "decoder": tiny_llama}
CASES = [("encoder", "classification"), ("encoder", "regression"), ("decoder", "classification")]


class Logits(nn.Module):
    """The PEFT model as laplace-torch wants it."""

    def __init__(self, peft_model: nn.Module, scale: float) -> None:
        super().__init__()
        self.peft_model, self.scale = peft_model, scale

    def forward(self, batch: Any) -> torch.Tensor:
        """Maps a batch to logits."""
        return self.peft_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def batch(task: str, seed: int, items: int = 5, length: int = 6) -> dict[str, torch.Tensor]:
    """Without padding, of which curvlinops knows nothing."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (items, length), generator=generator)
    labels = torch.randint(3, (items,), generator=generator)
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": labels
        if task == "classification"
        else torch.randn(items, generator=generator, dtype=DOUBLE),
    }


def models(family: str, task: str) -> tuple[Logits, BayesianLora]:
    num_labels = 3 if task == "classification" else 1
    peft_model = FAMILIES[family](num_labels=num_labels, dtype=DOUBLE, attention="eager")
    for name, parameter in peft_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    likelihood = "classification" if task == "classification" else Regression(scale=1.0)
    return Logits(peft_model, 1.0), BayesianLora(peft_model, "point", likelihood, num_data=15)


def theirs(wrapped: Logits, task: str, structure: str, precision: float) -> Any:
    import laplace  # installed by `make test`, see requirements-laplace-torch.txt; it warns

    rows = [
        {name: values[n] for name, values in each.items()}
        for each in (batch(task, seed) for seed in range(3))
        for n in range(5)
    ]
    if task == "regression":
        rows = [row | {"labels": row["labels"][None]} for row in rows]
    loader: Any = torch.utils.data.DataLoader(
        rows,
        batch_size=15,
        collate_fn=lambda xs: UserDict({k: torch.stack([x[k] for x in xs]) for k in xs[0]}),
    )
    found = laplace.Laplace(
        wrapped,
        task,
        hessian_structure=structure,
        subset_of_weights="all",
        prior_precision=precision,
        backend=laplace.curvature.CurvlinopsGGN,
        dict_key_x="input_ids",
        dict_key_y="labels",
    )
    found.fit(loader)
    return found


@pytest.mark.parametrize(("family", "task"), CASES)
@pytest.mark.parametrize(
    ("ours", "other", "tolerance"), [("diagonal", "diag", 1e-4), ("kronecker", "kron", 1e-3)]
)
@pytest.mark.parametrize("precision", [0.05, 2.0])
def test_evidence_and_predictive(
    family: str, task: str, ours: Any, other: str, tolerance: float, precision: float
) -> None:
    wrapped, model = models(family, task)
    theirs_ = theirs(wrapped, task, other, precision)
    found = laplace_posterior(
        model, [batch(task, seed) for seed in range(3)], structure=ours, precision=precision
    )
    evidence = theirs_.log_marginal_likelihood().item()
    assert facts(found)["log_evidence"] == pytest.approx(evidence, rel=tolerance)
    mean, covariance = theirs_._glm_predictive_distribution(UserDict(batch(task, 9)))
    our_mean, our_covariance = moments(found, batch(task, 9))
    torch.testing.assert_close(our_mean, mean.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        our_covariance, covariance.detach(), rtol=tolerance, atol=tolerance * float(covariance.max())
    )


@pytest.mark.parametrize(("family", "task"), CASES)
def test_the_whole_matrix(family: str, task: str) -> None:
    wrapped, model = models(family, task)
    theirs_ = theirs(wrapped, task, "full", 2.0)
    full = Full(model.stacks, torch.device("cpu"))
    with evaluating(model.adapter.peft_model, model):
        totals = accumulate(model, model.lora_weights(), [batch(task, seed) for seed in range(3)], full)
        kept = record(model, model.lora_weights(), batch(task, 9))
        count = kept.scores.shape[-1]
        rows = torch.eye(count, dtype=DOUBLE)
        jacobian = torch.stack([full.rows(kept, kept.pull_back(e.expand(5, count))) for e in rows], 1)
    precision = full.matrix + 2 * torch.eye(len(full.matrix), dtype=DOUBLE)
    norm = sum(float(weight.square().sum()) for weight in model.lora_weights().values())
    evidence = totals.log_likelihood - 0.5 * (2 * norm + float((precision / 2).logdet()))
    assert evidence == pytest.approx(theirs_.log_marginal_likelihood().item(), rel=1e-4)
    _, covariance = theirs_._glm_predictive_distribution(UserDict(batch(task, 9)))
    torch.testing.assert_close(
        jacobian @ precision.inverse() @ jacobian.mT, covariance.detach(), rtol=1e-4, atol=1e-4
    )
    trace = theirs_.H.diagonal().sum().item()
    assert float(full.matrix.trace()) == pytest.approx(trace, rel=1e-4)
