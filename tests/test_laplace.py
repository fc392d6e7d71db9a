"""Laplace approximations: against exact regression, dense matrices, and what they must not depend on."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from bayeslora_pyro import BayesianLora, Choice, laplace_posterior
from bayeslora_pyro.curvature import Full, Record, accumulate, record
from bayeslora_pyro.isolation import evaluating

from .exact import rand
from .laplace_cases import DOUBLE, check_alike, classifier, data, facts, moments
from .tiny import tiny_batch, tiny_bert, tiny_llama


def padded(batch: dict[str, Any], count: int, left: bool) -> dict[str, Any]:
    """The batch with tokens that only fill its rows."""
    rows = len(batch["input_ids"])
    filler = torch.zeros(rows, count, dtype=torch.long)
    order = (lambda x: [filler, x]) if left else (lambda x: [x, filler])
    names = [n for n in ("input_ids", "attention_mask", "option_mask") if n in batch]
    return batch | {name: torch.cat(order(batch[name]), dim=1) for name in names}


def one_by_one(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value[[n]] for name, value in batch.items()} for batch in batches for n in range(5)]


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_neither_batches_nor_order_nor_padding_matter(structure: Any, sharing: Any) -> None:
    model, batches, test = classifier(), data(), tiny_batch(seed=7)
    wanted = laplace_posterior(model, batches, structure=structure, sharing=sharing)
    for others in (
        one_by_one(batches),
        batches[::-1],
        [padded(batch, 4, left=False) for batch in batches],
    ):
        found = laplace_posterior(model, others, structure=structure, sharing=sharing)
        check_alike(found, wanted)
        torch.testing.assert_close(moments(found, test)[1], moments(wanted, test)[1], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        moments(wanted, padded(test, 4, left=False))[1], moments(wanted, test)[1], rtol=1e-7, atol=1e-9
    )


def test_left_padding_of_a_decoder_does_not_matter() -> None:
    model = BayesianLora(tiny_llama(dtype=DOUBLE), "point", Choice((5, 6, 7)), num_data=15)
    batches = [
        batch | {"input_ids": batch["input_ids"].clamp(min=3), "attention_mask": torch.ones(5, 7).long()}
        for batch in data()
    ]
    wanted = laplace_posterior(model, batches)
    shifted = [
        padded(b, 3, left=True) | {"position_ids": (torch.arange(10) - 3).clamp(min=0).expand(5, 10)}
        for b in batches
    ]
    found = laplace_posterior(model, shifted)
    check_alike(found, wanted, 1e-5)  # its norms are taken in float32


def test_pads_that_count_are_noticed() -> None:
    """A planted fault: without the mask, padding changes the curvature."""
    model, batches = classifier(), data()
    wanted = facts(laplace_posterior(model, batches))["effective_dimension"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Record, "_mask_for", lambda self, values: torch.ones(values.shape[:2]).bool())
        found = facts(laplace_posterior(model, [padded(b, 4, left=False) for b in batches]))
    assert found["effective_dimension"] != pytest.approx(wanted, rel=1e-3)


def test_part_of_the_data_stands_for_all_of_it() -> None:
    model, batches = classifier(), data()
    doubled = BayesianLora(model.adapter.peft_model, "point", num_data=30)
    once, twice = laplace_posterior(doubled, batches), laplace_posterior(doubled, [*batches, *batches])
    assert facts(once)["log_evidence"] == pytest.approx(facts(twice)["log_evidence"])


class TestLowRank:
    def test_with_rank_enough_it_is_the_whole(self) -> None:
        model, batches, test = classifier(), data(), tiny_batch(seed=7)
        whole = laplace_posterior(model, batches, precision=0.3)
        low = laplace_posterior(model, batches, precision=0.3, max_dense=4, rank=16, sketch=16)
        torch.testing.assert_close(moments(low, test)[1], moments(whole, test)[1])
        assert facts(low)["log_evidence"] == pytest.approx(facts(whole)["log_evidence"])

    def test_what_is_left_out_adds_variance(self) -> None:
        """Of one accumulated factor, cut ever shorter."""
        model, batches, test = classifier(), data(), tiny_batch(seed=7)
        options: dict[str, Any] = {"precision": 0.3, "max_dense": 4, "sketch": 16}
        covariances = [
            moments(laplace_posterior(model, batches, rank=k, **options), test)[1] for k in (2, 5, 9, 16)
        ]
        for fewer, more in pairwise(covariances):
            assert torch.linalg.eigvalsh(fewer - more).min() > -1e-9
        assert (covariances[0] - covariances[-1]).norm() > 1e-3

    def test_it_says_what_it_captured(self) -> None:
        model, batches = classifier(), data()
        shares = [
            facts(laplace_posterior(model, batches, max_dense=4, rank=k, sketch=16))["captured"]
            for k in (1, 4, 16)
        ]
        assert 0 < shares[0] < shares[1] < shares[2]
        assert shares[2] == pytest.approx(1)


def test_the_prior_decides_in_its_limits() -> None:
    model, batches, test = classifier(), data(), tiny_batch(seed=7)
    covariances = [
        moments(laplace_posterior(model, batches, precision=p, max_dense=4, rank=2), test)[1]
        for p in (1e-7, 1e-6, 1, 1e6, 1e9)
    ]
    for loose, tight in pairwise(covariances):
        assert torch.linalg.eigvalsh(loose - tight).min() > -1e-9
    assert covariances[-1].norm() < 1e-5
    torch.testing.assert_close(
        covariances[0], 10 * covariances[1], rtol=1e-3, atol=0
    )  # where nothing is known, 1 / λ


def test_curvature_and_covariance_are_the_dense_ones() -> None:
    """Of the whole matrix, the blocks; of its Jacobian, that of autograd; of the covariance, that of all entries."""
    model, batches, test = classifier(num_layers=1), data(), tiny_batch(seed=7)
    weights = model.lora_weights()

    def scores(*factors: torch.Tensor) -> torch.Tensor:
        stacked, left = {}, list(factors)
        for stack in model.stacks:
            stacked[stack.name] = torch.stack([left.pop(0) for _ in stack.adapters])
        return model.likelihood.scores(model.run_with(stacked, test), test)

    factors = [factor for stack in model.stacks for factor in weights[stack.name]]
    wanted = torch.cat(
        [j.flatten(2) for j in torch.autograd.functional.jacobian(scores, tuple(factors))], dim=-1
    )
    with evaluating(model.adapter.peft_model, model):
        full = Full(model.stacks, torch.device("cpu"))
        kept = record(model, weights, test)
        rows = [full.rows(kept, kept.pull_back(e.expand(5, 3))) for e in torch.eye(3, dtype=DOUBLE)]
        jacobian = torch.stack(rows, dim=1)
        accumulate(model, weights, batches, full)
    torch.testing.assert_close(jacobian, wanted)
    found = laplace_posterior(model, batches, structure="diagonal", precision=0.3)
    known = torch.cat([found.guide.get_posterior(stack).variance.flatten() for stack in found.stacks])
    torch.testing.assert_close(1 / known - 0.3, full.matrix.diagonal())
    torch.testing.assert_close(moments(found, test)[1], (jacobian * known) @ jacobian.mT)
    found = laplace_posterior(model, batches, precision=0.3)
    blocks = []
    for stack in found.stacks:
        q = found.guide.get_posterior(stack)
        for place in range(len(stack)):
            side = torch.kron(
                q.row_vectors[place] * q.row_values[place] @ q.row_vectors[place].mT,
                q.col_vectors[place] * q.col_values[place] @ q.col_vectors[place].mT,
            )
            blocks.append((side + 0.3 * torch.eye(len(side), dtype=DOUBLE)).inverse())
    torch.testing.assert_close(moments(found, test)[1], jacobian @ torch.block_diag(*blocks) @ jacobian.mT)


def test_the_full_matrix_is_the_hessian_of_the_divergence() -> None:
    """Of the predictions from those of moved factors, which is what the Gauss-Newton matrix is."""
    model = classifier(num_layers=1, hidden=8, attention="eager")
    test = tiny_batch(seed=7, items=2)
    weights = model.lora_weights()
    flat = torch.cat([weights[stack.name].flatten() for stack in model.stacks])

    def divergence(moved: torch.Tensor) -> torch.Tensor:
        stacked, first = {}, 0
        for stack in model.stacks:
            size = weights[stack.name].numel()
            stacked[stack.name] = moved[first : first + size].reshape(weights[stack.name].shape)
            first += size
        with torch.no_grad():
            still = model.likelihood.distribution(model.run_with(weights, test), test)
        return torch.distributions.kl_divergence(
            still, model.likelihood.distribution(model.run_with(stacked, test), test)
        ).sum()

    wanted = torch.autograd.functional.hessian(divergence, flat)
    with evaluating(model.adapter.peft_model, model):
        full = Full(model.stacks, torch.device("cpu"))
        accumulate(model, weights, [test], full)
    torch.testing.assert_close(full.matrix, wanted)


@pytest.mark.parametrize("kind", ["options", "choice", "classification"])
def test_labels_that_are_drawn_give_the_fisher_information_on_average(kind: str) -> None:
    if kind == "classification":
        model = classifier(num_layers=1)
    else:
        likelihood = Choice() if kind == "options" else Choice((5, 6, 7))
        model = BayesianLora(tiny_llama(dtype=DOUBLE, num_layers=1), "point", likelihood, num_data=3)
    batch = tiny_batch(kind, items=3)
    exact, drawn = (Full(model.stacks, torch.device("cpu")) for _ in range(2))
    with evaluating(model.adapter.peft_model, model):
        accumulate(model, model.lora_weights(), [batch], exact)
        accumulate(model, model.lora_weights(), [batch], drawn, fisher=3000, seed=1)
    assert (drawn.matrix - exact.matrix).norm() < 0.05 * exact.matrix.norm()


def test_options_need_one_backward_pass() -> None:
    """Each row bears on one score, and one backward pass gives what as many as there are options would."""
    model = BayesianLora(tiny_llama(dtype=DOUBLE), "point", Choice(), num_data=5)
    batch, weights = tiny_batch("options"), model.lora_weights()
    with evaluating(model.adapter.peft_model, model):
        kept, slow = record(model, weights, batch), record(model, weights, batch)
        slow.column = None
        for cotangent in rand(3, 5, 3, seed=1):
            fast, wanted = kept.pull_back(cotangent), slow.pull_back(cotangent)
            for ours, theirs in zip(fast.of, wanted.of, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # norms in float32


def test_rotations_of_the_rank_change_nothing_and_other_maps_do() -> None:
    batches, test = data(), tiny_batch(seed=7)
    rotation = torch.linalg.qr(rand(2, 2, seed=4))[0]
    shear = torch.tensor([[1.0, 0.8], [0.0, 2.0]], dtype=DOUBLE)
    wanted = moments(laplace_posterior(classifier(), batches, precision=0.3), test)
    for change, same in ((rotation, True), (shear, False)):
        peft_model = tiny_bert(dtype=DOUBLE)
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_A" in name:
                    parameter.copy_(change.inverse() @ parameter)
                if "lora_B" in name:
                    parameter.copy_(parameter @ change)
        found = moments(
            laplace_posterior(BayesianLora(peft_model, "point", num_data=15), batches, precision=0.3), test
        )
        torch.testing.assert_close(found[0], wanted[0])
        assert torch.allclose(found[1], wanted[1], rtol=1e-6) is same


def test_the_last_layer_is_the_whole_restricted_to_it() -> None:
    model, batches, test = classifier(), data(), tiny_batch(seed=7)
    last = laplace_posterior(model, batches, modules="last", precision=0.3)
    parts = [
        laplace_posterior(model, batches, modules=f"*.layer.{index}.*", precision=0.3) for index in (0, 1)
    ]
    whole = laplace_posterior(model, batches, precision=0.3)
    torch.testing.assert_close(moments(last, test)[1], moments(parts[1], test)[1])
    total = moments(parts[0], test)[1] + moments(parts[1], test)[1]
    torch.testing.assert_close(moments(whole, test)[1], total)


def test_longer_texts_do_not_inflate_the_trace() -> None:
    """A defect of released code: with sums over tokens on both sides it grows with the number of tokens."""
    ratios = []
    for length in (3, 6, 12, 24):
        model = classifier(num_layers=1)
        batches = [tiny_batch(seed=seed, length=length) for seed in range(3)]
        for batch in batches:
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        full = Full(model.stacks, torch.device("cpu"))
        with evaluating(model.adapter.peft_model, model):
            accumulate(model, model.lora_weights(), batches, full)
        found = laplace_posterior(model, batches, precision=1.0)
        trace = sum(
            float((q.row_values.sum(-1) * q.col_values.sum(-1)).sum())
            for q in (found.guide.get_posterior(stack) for stack in found.stacks)
        )
        ratios.append(trace / float(full.matrix.trace()))
    assert max(ratios) / min(ratios) < 3
    assert all(0.2 < ratio < 5 for ratio in ratios)
