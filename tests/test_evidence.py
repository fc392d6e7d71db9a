"""The evidence as a function of the precision, and its one maximum; the sides of a Kronecker factorization."""

import pytest
import torch

from bayeslora_pyro.curvature import Evidence, Kronecker, Sizes
from bayeslora_pyro.curvature.sides import Side
from bayeslora_pyro.types import FactorStack

from .exact import rand

DOUBLE = torch.float64


def evidence(factors: int = 4, values: int = 6) -> Evidence:
    return Evidence(-12.5, rand(factors, values, seed=1).exp() * 3, rand(factors, seed=2).exp())


def test_it_is_the_dense_one() -> None:
    one, precision = evidence(), rand(4, seed=3).exp()
    volume = sum(
        (values.diag() + p * torch.eye(6, dtype=DOUBLE)).logdet() - 6 * p.log()
        for values, p in zip(one.eigenvalues, precision, strict=True)
    )
    wanted = -12.5 - 0.5 * ((precision * one.squared_norm).sum() + volume)
    torch.testing.assert_close(one.log_evidence(precision), wanted)


def test_its_derivative_is_that_of_mackay() -> None:
    one, log_precision = evidence(), rand(4, seed=3).requires_grad_()
    one.log_evidence(log_precision.exp()).backward()
    precision = log_precision.detach().exp()
    wanted = 0.5 * (one.effective_dimension(precision) - precision * one.squared_norm)
    torch.testing.assert_close(log_precision.grad, wanted)
    assert torch.autograd.gradcheck(lambda p: one.log_evidence(p.exp()), log_precision)


@pytest.mark.parametrize("group", [[0, 0, 0, 0], [0, 1, 0, 1], [0, 1, 2, 3], [1, 0, 0, 0]])
def test_the_best_precision_is_the_maximum(group: list[int]) -> None:
    one, groups = evidence(), torch.tensor(group)
    best = one.best_precision(groups)
    parts = (one.effective_dimension(best), one.squared_norm)
    gain, norm = (torch.zeros(4, dtype=DOUBLE).index_add(0, groups, part) for part in parts)
    torch.testing.assert_close(best, (gain / norm)[groups])
    for index in set(group):
        for factor in (0.7, 0.99, 1.01, 1.5):
            moved = torch.where(groups == index, best * factor, best)
            assert one.log_evidence(moved) < one.log_evidence(best)


def test_the_maximum_of_another_formula_is_noticed() -> None:
    """A planted fault: the norm not squared, as in released code."""
    one = evidence()
    wrong = Evidence(one.log_likelihood, one.eigenvalues, one.squared_norm.sqrt())
    group = torch.zeros(4, dtype=torch.long)
    assert one.log_evidence(wrong.best_precision(group)) < one.log_evidence(one.best_precision(group)) - 1e-3


def test_no_curvature_or_no_factor_has_no_maximum() -> None:
    group = torch.tensor([0, 0, 1, 1])
    one = evidence()
    flat = Evidence(0.0, one.eigenvalues * torch.tensor([[1.0], [1.0], [0.0], [0.0]]), one.squared_norm)
    with pytest.raises(ValueError, match="does not depend on a group of factors"):
        flat.best_precision(group)
    zero = Evidence(0.0, one.eigenvalues, one.squared_norm * torch.tensor([1.0, 1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="all factors of a group are zero"):
        zero.best_precision(group)


def summed(rows: list[torch.Tensor], rank: int = 20, sketch: int = 20, max_dense: int = 0) -> Side:
    side = Side(20, rank, sketch, max_dense, torch.device("cpu"))
    for each in rows:
        side.add(each)
    return side


class TestSides:
    rows = tuple(rand(7, 20, seed=seed) * torch.logspace(0, -1.5, 20, dtype=DOUBLE) for seed in range(9))

    def total(self) -> torch.Tensor:
        return torch.cat(self.rows).mT @ torch.cat(self.rows)

    def test_whole_sides_and_sketches_of_full_rank_are_the_sum(self) -> None:
        for max_dense in (0, 20):
            eigen = summed([*self.rows], max_dense=max_dense).eigen(2.0)
            matrix = eigen.vectors * eigen.values @ eigen.vectors.mT
            torch.testing.assert_close(matrix, 2 * self.total())
            torch.testing.assert_close(eigen.vectors.mT @ eigen.vectors, torch.eye(20, dtype=DOUBLE))
            assert eigen.captured == pytest.approx(1)

    def test_a_sketch_never_says_more_than_there_is(self) -> None:
        for rank, sketch in ((3, 3), (3, 9), (6, 6)):
            eigen = summed([*self.rows], rank=rank, sketch=sketch).eigen()
            matrix = eigen.vectors * eigen.values @ eigen.vectors.mT
            assert torch.linalg.eigvalsh(self.total() - matrix).min() > -1e-10
            assert eigen.captured == pytest.approx(float(matrix.trace() / self.total().trace()))

    def test_more_columns_on_the_way_come_closer_to_the_best(self) -> None:
        best = float(torch.linalg.eigvalsh(self.total())[-3:].sum() / self.total().trace())
        shares = [summed([*self.rows], rank=3, sketch=sketch).eigen().captured for sketch in (3, 6, 20)]
        assert shares[0] <= shares[1] + 1e-12 <= shares[2] + 1e-12
        assert shares[2] == pytest.approx(best)
        assert shares[0] > 0.95 * best

    def test_fewer_rows_than_eigenvectors_leave_zeros(self) -> None:
        eigen = summed([self.rows[0][:2]], rank=5, sketch=8).eigen()
        assert eigen.vectors.shape == (20, 5)
        assert (eigen.values[2:] == 0).all()
        torch.testing.assert_close(eigen.vectors.mT @ eigen.vectors, torch.eye(5, dtype=DOUBLE))
        matrix = eigen.vectors * eigen.values @ eigen.vectors.mT
        torch.testing.assert_close(matrix, self.rows[0][:2].mT @ self.rows[0][:2])


def test_the_factors_of_a_seven_billion_parameter_model_take_little_memory() -> None:
    """LLaMA-2-7B with LoRA of rank 8 on q_proj and v_proj, ten eigenvectors: under a GiB, on the way and kept."""
    stacks = [
        FactorStack("A", "A", (8, 4096), tuple("x" * 64)),
        FactorStack("B", "B", (4096, 8), tuple("x" * 64)),
    ]
    kept = Kronecker(stacks, Sizes(rank=10), "expand", torch.device("meta"))
    for side in (*kept._out, *kept._in):
        side.add(torch.zeros(100, side.size, device="meta"))
    sizes = [(size, min(size, 10)) for stack in stacks for size in stack.shape for _ in stack.adapters]
    assert kept.num_bytes < 0.25 * 2**30
    assert sum(4 * (size + 1) * rank for size, rank in sizes) < 0.05 * 2**30
