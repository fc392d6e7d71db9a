"""Every flow: its shape, start, gradients, inverse, log-det against its own Jacobian, and saving."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayeslora_pyro.transforms import TRANSFORMS, StackedTransform

from .exact import perturb
from .flows import (
    BOTH_WAYS,
    DIM,
    ELSEWHERE,
    FACTORS,
    FLOWS,
    NOTHING_AT_RANDOM,
    ONE_WAY,
    ROWS,
    START,
    check_gradients,
    check_log_det,
    check_vectorized_is_looped,
    stack,
    value,
)


@pytest.mark.parametrize("name", FLOWS)
class TestEveryFlow:
    def test_shapes(self, name):
        stacked = stack(FLOWS[name])
        x = value(4, 1, FACTORS, ROWS, DIM)
        y = stacked(x)
        assert y.shape == x.shape
        assert stacked.log_abs_det_jacobian(x, y).shape == x.shape[:-1]
        torch.testing.assert_close(stacked(x[2, 0]), y[2, 0], rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
    def test_starts_at_the_identity_if_it_can(self, name, dtype, tolerance):
        torch.set_default_dtype(dtype)
        try:
            stacked = StackedTransform(FLOWS[name], FACTORS, 9)
        finally:
            torch.set_default_dtype(torch.float32)
        x = value(FACTORS, 9, 9).to(dtype)
        y = stacked(x)
        assert y.dtype == dtype
        assert ((y - x).abs().max() <= START.get(name, tolerance)) == (name not in ELSEWHERE)
        ladj = stacked.log_abs_det_jacobian(x, y)
        bound = max(2 * 9 * START.get(name, 0), tolerance)
        assert (ladj.abs().max() <= bound) == (name != "zuko_naf")

    def test_every_parameter_gets_a_gradient(self, name):
        parameters = check_gradients(stack(FLOWS[name]), value(8, FACTORS, ROWS, DIM))
        for parameter in parameters:
            assert all(gradient.any() for gradient in parameter.grad)

    def test_log_det_is_that_of_the_jacobian(self, name):
        check_log_det(stack(FLOWS[name]), value(FACTORS, ROWS, DIM))

    def test_one_by_one_gives_the_same_numbers(self, name):
        check_vectorized_is_looped(FLOWS[name], name in BOTH_WAYS)

    def test_loads_into_a_stack_of_another_seed(self, name):
        saved, loaded = stack(FLOWS[name]), perturb(stack(FLOWS[name], seed=7), seed=3)
        x = value(FACTORS, ROWS, DIM)
        assert not torch.equal(loaded(x), saved(x))
        loaded.load_state_dict(saved.state_dict())
        assert torch.equal(loaded(x), saved(x))
        if name in BOTH_WAYS:
            assert torch.equal(loaded.inv(x), saved.inv(x))

    def test_its_state_has_no_tensor_twice(self, name):
        # safetensors refuses those
        tensors = StackedTransform(FLOWS[name], FACTORS, DIM).state_dict().values()
        places = [tensor.data_ptr() for tensor in tensors]
        assert len(set(places)) == len(places)

    def test_factors_differ(self, name):
        rows = value(ROWS, DIM).expand(FACTORS, ROWS, DIM)
        for first, second in itertools.combinations(stack(FLOWS[name])(rows), 2):
            assert (first - second).abs().max() > 1e-3

    def test_leaves_the_global_generator_alone(self, name):
        before = torch.get_rng_state()
        stacked = StackedTransform(FLOWS[name], FACTORS, DIM)
        x = torch.ones(FACTORS, ROWS, DIM)
        stacked.log_abs_det_jacobian(x, stacked(x))
        if name in BOTH_WAYS:
            stacked.inv(x)
        assert torch.equal(torch.get_rng_state(), before)

    def test_depends_on_the_seed_alone(self, name):
        first = StackedTransform(FLOWS[name], FACTORS, DIM, seed=3).state_dict()
        with torch.random.fork_rng():
            torch.rand(7)
            again = StackedTransform(FLOWS[name], FACTORS, DIM, seed=3).state_dict()
        other = StackedTransform(FLOWS[name], FACTORS, DIM, seed=4).state_dict()
        assert all(torch.equal(first[key], again[key]) for key in first)
        differs = any(not torch.equal(first[key], other[key]) for key in first)
        assert differs == (name not in NOTHING_AT_RANDOM)

    def test_copies_after_a_call(self, name):
        stacked = stack(FLOWS[name])
        x = value(FACTORS, ROWS, DIM)
        y = stacked(x)
        twin = copy.deepcopy(stacked)
        assert torch.equal(twin(x), y)
        perturb(twin)
        assert torch.equal(twin(x), y) == (not list(twin.parameters()))
        assert torch.equal(stacked.eval()(x.clone()), y)

    def test_a_draw_without_gradients_remembers_no_graph(self, name):
        stacked = stack(FLOWS[name])
        with torch.no_grad():
            x = value(FACTORS, ROWS, DIM)
            y = stacked(x)
            assert not y.requires_grad
            assert not stacked.log_abs_det_jacobian(x, y).requires_grad

    def test_scores_its_own_draws_in_one_pass(self, name, monkeypatch):
        stacked = stack(FLOWS[name])
        calls = []
        run = stacked._run
        monkeypatch.setattr(stacked, "_run", lambda *args, **kw: (calls.append(kw), run(*args, **kw))[1])
        flow = dist.TransformedDistribution(
            dist.Normal(value(FACTORS, ROWS, DIM), 0.5).to_event(2), [stacked]
        )
        flow.log_prob(flow.rsample())
        assert calls == [{"inverse": False}]

    @pytest.mark.parametrize("batch", [(), (4,)])
    def test_density_is_the_change_of_variables(self, name, batch):
        stacked = stack(FLOWS[name])
        base = dist.Normal(value(FACTORS, ROWS, DIM), 0.5).to_event(2)
        flow = dist.TransformedDistribution(base, [stacked]).expand((*batch, FACTORS))
        assert flow.event_shape == (ROWS, DIM)
        with pyro.plate("factors", FACTORS, dim=-1), torch.random.fork_rng():
            torch.manual_seed(0)
            y = pyro.sample("V", flow)
        log_prob = flow.log_prob(y)
        assert log_prob.shape == (*batch, FACTORS)
        x = stacked.inv(y).detach()  # remembered
        dense = torch.autograd.functional.jacobian(stacked, x.reshape(-1, FACTORS, ROWS, DIM)[0])
        dense = (
            dense.reshape(FACTORS, ROWS * DIM, FACTORS, ROWS * DIM).diagonal(dim1=0, dim2=2).movedim(-1, 0)
        )
        truth = base.log_prob(x) if not batch else base.log_prob(x)[0]
        log_prob = log_prob if not batch else log_prob[0]
        torch.testing.assert_close(log_prob, truth - torch.linalg.slogdet(dense)[1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_inverse(name):
    stacked = stack(FLOWS[name])
    x = value(2, FACTORS, ROWS, DIM)
    y = stacked(x)
    forward = stacked.log_abs_det_jacobian(x, y)
    back = stacked.inv(y.clone())
    assert back is not x
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(stacked(stacked.inv(x.clone()).clone()), x, rtol=0, atol=1e-9)
    # The log-det that came with the inverse is the forward one.
    back = stacked.inv(y.clone())
    torch.testing.assert_close(stacked.log_abs_det_jacobian(back, y), forward, rtol=0, atol=1e-9)
    torch.testing.assert_close(stacked.inv.log_abs_det_jacobian(y, x), -forward, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(ONE_WAY))
def test_no_inverse_is_said_clearly(name):
    stacked = stack(FLOWS[name])
    flow = dist.TransformedDistribution(dist.Normal(value(FACTORS, ROWS, DIM), 1.0).to_event(2), [stacked])
    draw = flow.sample()
    assert flow.log_prob(draw).shape == (FACTORS,)
    with pytest.raises(NotImplementedError, match="no inverse"):
        flow.log_prob(draw.clone())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_flows_work_alone(name):
    flow = perturb(TRANSFORMS[name](DIM).double())
    for x in (value(DIM), value(7, DIM)):
        y = flow(x)
        assert y.shape == x.shape
        ladj = flow.log_abs_det_jacobian(x, y)
        assert ladj.shape == x.shape[:-1]
        flow(value(DIM, seed=5))  # what it saw last is not what it is asked for
        torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), ladj, rtol=0, atol=1e-12)
        if name in BOTH_WAYS:
            torch.testing.assert_close(flow.inv(y.clone()), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_flows_are_small(name):
    # The paper's network for nine columns has 1,554 parameters.
    large = {
        "block_autoregressive": 2097,
        "neural_autoregressive": 2268,
        "polynomial": 1359,
        "spline_autoregressive": 2727,
        "spline_coupling": 1687,
        "zuko_naf": 8073,
        "zuko_nsf": 3951,
    }
    size = sum(parameter.numel() for parameter in TRANSFORMS[name](9).parameters())
    assert size == large[name] if name in large else size <= 738
