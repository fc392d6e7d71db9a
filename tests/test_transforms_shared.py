"""Flows conditioned on an embedding of each factor, and flows over whole matrices."""

from functools import partial

import pyro.distributions as dist
import pytest
import torch

from bayeslora_pyro.transforms import (
    TRANSFORMS,
    ConditionedTransform,
    MatrixTransform,
    StackedTransform,
    affine_autoregressive,
    iterated,
)

from .exact import perturb
from .flows import (
    BOTH_WAYS,
    DIM,
    ELSEWHERE,
    FACTORS,
    ROWS,
    START,
    check_gradients,
    check_log_det,
    check_vectorized_is_looped,
    stack,
    value,
)

conditioned = partial(stack, kind=ConditionedTransform, scale=0.1)
CONDITIONED = [name for name in TRANSFORMS if name != "permute"]  # which has no parameters


def over_matrix(factory, *, kind=StackedTransform, seed=0, perturbed=True):
    flow = MatrixTransform(kind(factory, FACTORS, ROWS * DIM, seed=seed), (ROWS, DIM)).double()
    return perturb(flow, scale=0.1) if perturbed else flow


@pytest.mark.parametrize("name", CONDITIONED)
class TestEveryFlowConditioned:
    def test_starts_where_the_flow_starts(self, name):
        flow = conditioned(TRANSFORMS[name], perturbed=False)
        x = value(FACTORS, ROWS, DIM)
        assert ((flow(x) - x).abs().max() <= START.get(name, 1e-5)) == (name not in ELSEWHERE)

    def test_log_det_is_that_of_the_jacobian(self, name):
        check_log_det(conditioned(TRANSFORMS[name]), value(FACTORS, ROWS, DIM))

    def test_every_parameter_gets_a_gradient(self, name):
        check_gradients(conditioned(TRANSFORMS[name]), value(8, FACTORS, ROWS, DIM))

    def test_one_by_one_gives_the_same_numbers(self, name):
        check_vectorized_is_looped(TRANSFORMS[name], name in BOTH_WAYS, kind=ConditionedTransform, scale=0.1)

    def test_loads_into_a_stack_of_another_seed(self, name):
        saved = conditioned(TRANSFORMS[name])
        loaded = conditioned(TRANSFORMS[name], seed=7)
        x = value(FACTORS, ROWS, DIM)
        loaded(x)
        loaded.load_state_dict(saved.state_dict())
        assert torch.equal(loaded(x), saved(x))


class TestConditioned:
    def test_parameters_are_the_shared_ones_plus_what_the_embedding_says(self):
        flow = conditioned(affine_autoregressive)
        x = value(FACTORS, ROWS, DIM)
        y = flow(x)
        names = [name for name, _ in flow.copies.named_parameters()]
        for factor, embedding in enumerate(flow.embeddings):
            single = stack(affine_autoregressive, factors=1)
            state = {name: tensor[None] for name, tensor in flow.copies.state_dict().items()}
            for name, directions in zip(names, flow.directions, strict=True):
                for weight, direction in zip(embedding, directions, strict=True):
                    state[name] = state[name] + weight * direction
            single.copies.load_state_dict(state)
            torch.testing.assert_close(single(x[factor][None])[0], y[factor], rtol=0, atol=1e-12)

    def test_factors_share_all_but_the_embedding(self):
        small, large = (ConditionedTransform(affine_autoregressive, number, 9) for number in (2, 60))
        count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
        assert count(large) - count(small) == 58 * 4
        assert 10 * count(large) < count(StackedTransform(affine_autoregressive, 60, 9))

    def test_factors_of_one_embedding_have_one_flow(self):
        flow = conditioned(affine_autoregressive)
        rows = value(ROWS, DIM).expand(FACTORS, ROWS, DIM)
        assert (flow(rows)[0] - flow(rows)[1]).abs().max() > 1e-3
        with torch.no_grad():
            flow.embeddings[1] = flow.embeddings[0]
        assert torch.equal(flow(rows)[0], flow(rows)[1])

    def test_leaves_the_global_generator_alone(self):
        before = torch.get_rng_state()
        first, second = (ConditionedTransform(affine_autoregressive, FACTORS, DIM, seed=s) for s in (3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(first.embeddings, second.embeddings)


MATRIX_FLOWS = ("affine_autoregressive", "householder", "spline_coupling", "planar", "zuko_maf")


@pytest.mark.parametrize("kind", [StackedTransform, ConditionedTransform])
@pytest.mark.parametrize("name", MATRIX_FLOWS)
class TestOverMatrices:
    def test_log_det_is_that_of_the_jacobian(self, name, kind):
        check_log_det(over_matrix(TRANSFORMS[name], kind=kind), value(FACTORS, ROWS, DIM), event_dim=2)

    def test_starts_at_the_identity_and_inverts(self, name, kind):
        x = value(2, FACTORS, ROWS, DIM)
        flow = over_matrix(TRANSFORMS[name], kind=kind, perturbed=False)
        torch.testing.assert_close(flow(x), x, rtol=0, atol=1e-6)
        moved = over_matrix(TRANSFORMS[name], kind=kind)
        assert (moved(x) - x).abs().max() > 1e-3
        if name in BOTH_WAYS:
            torch.testing.assert_close(moved.inv(moved(x).clone()), x, rtol=0, atol=1e-9)
        else:
            with pytest.raises(NotImplementedError, match="no inverse"):
                moved.inv(x)

    def test_density_is_that_of_the_flattened_matrices(self, name, kind):
        flow = over_matrix(TRANSFORMS[name], kind=kind)
        loc = value(FACTORS, ROWS, DIM)
        matrices = dist.TransformedDistribution(dist.Normal(loc, 0.5).to_event(2), [flow])
        assert (matrices.batch_shape, matrices.event_shape) == ((FACTORS,), (ROWS, DIM))
        x = loc + 0.5 * value(4, FACTORS, ROWS, DIM, seed=8)
        y = flow(x)
        vectors = dist.Normal(loc.flatten(1).unsqueeze(1), 0.5).to_event(2)
        flat = x.flatten(-2).unsqueeze(-2)
        truth = vectors.log_prob(flat) - flow.flow.log_abs_det_jacobian(flat, None).squeeze(-1)
        torch.testing.assert_close(matrices.log_prob(y), truth, rtol=0, atol=1e-10)


def test_only_over_matrices_do_rows_meet():
    x = value(FACTORS, ROWS, DIM)

    def mixed(flow):
        jacobian = torch.autograd.functional.jacobian(flow, x)[0, :, :, 0]
        return (jacobian[0, :, 1].abs().max() + jacobian[1, :, 0].abs().max()).item()

    assert mixed(stack(iterated(2, affine_autoregressive))) == 0
    assert mixed(over_matrix(iterated(2, affine_autoregressive))) > 1e-3


def test_a_flow_over_matrices_forgets_when_parameters_change():
    flow = over_matrix(affine_autoregressive)
    x = value(FACTORS, ROWS, DIM)
    y = flow(x)
    assert flow(x) is y
    assert not torch.equal(perturb(flow)(x), y)


class ScoresTheSharedFlow(ConditionedTransform):
    """Maps with the factor's flow and scores with the shared one."""

    def _run(self, value, inverse):
        mapped, _ = super()._run(value, inverse)
        shared = StackedTransform(affine_autoregressive, 1, self.dim).double()
        state = {f"copies.{name}": tensor[None] for name, tensor in self.copies.state_dict().items()}
        shared.load_state_dict(state)
        return mapped, shared._run(value.flatten(0, -2)[None], inverse)[1].reshape(value.shape[:-1])


class ScoresHalf(MatrixTransform):
    """Scores half of what it maps."""

    def _run(self, value, inverse):
        mapped, ladj = super()._run(value, inverse)
        return mapped, ladj * 0.5


def test_a_wrong_log_det_of_a_shared_flow_would_be_caught():
    with pytest.raises(AssertionError, match="not close"):
        check_log_det(
            stack(affine_autoregressive, kind=ScoresTheSharedFlow, scale=0.1), value(FACTORS, ROWS, DIM)
        )


def test_a_wrong_log_det_over_matrices_would_be_caught():
    flow = over_matrix(affine_autoregressive).flow
    with pytest.raises(AssertionError, match="not close"):
        check_log_det(ScoresHalf(flow, (ROWS, DIM)), value(FACTORS, ROWS, DIM), event_dim=2)
