"""Every flow against its own Jacobian, alone, iterated and stacked."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.nn import AutoRegressiveNN, DenseNN

from bayeslora_pyro.transforms import (
    TRANSFORMS,
    Inverse,
    Permutation,
    StackedTransform,
    affine_autoregressive,
    affine_coupling,
    inverse_autoregressive,
    iterated,
    neural_autoregressive,
    planar,
    radial,
    spline_coupling,
    sylvester,
)

FLOWS = {
    **TRANSFORMS,
    **{f"{name} twice": iterated(2, factory) for name, factory in TRANSFORMS.items()},
}
# How far from the identity a flow may start, where it cannot start there.
START = {"neural_autoregressive": 0.1, "neural_autoregressive twice": 0.2}
ONE_WAY = {
    name for name in FLOWS if name.split()[0] in {"neural_autoregressive", "planar", "radial", "sylvester"}
}
BOTH_WAYS = sorted(FLOWS.keys() - ONE_WAY)
FACTORS, ROWS, DIM = 3, 2, 5


def perturb(module, scale=0.3, seed=1):
    """Move all parameters, in place and not through `.data`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def stack(factory, *, seed=0, perturbed=True, factors=FACTORS, dim=DIM, vectorize=None):
    """Build a stack in float32, as users do, and take it to float64."""
    stacked = StackedTransform(factory, factors, dim, seed=seed, vectorize=vectorize).double()
    return perturb(stacked) if perturbed else stacked


def value(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_log_det(transform, x):
    """Compare with the dense Jacobian, which must also be block-diagonal over factors and rows."""
    blocks = x.shape[:-1].numel()
    dense = torch.autograd.functional.jacobian(transform, x).reshape(blocks, x.shape[-1], blocks, x.shape[-1])
    mixed = dense.transpose(1, 2)[~torch.eye(blocks, dtype=torch.bool)]
    assert mixed.abs().max() == 0
    truth = torch.linalg.slogdet(dense.diagonal(dim1=0, dim2=2).movedim(-1, 0))[1].reshape(x.shape[:-1])
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), truth, rtol=0, atol=1e-9)


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
    def test_starts_at_the_identity(self, name, dtype, tolerance):
        torch.set_default_dtype(dtype)
        try:
            stacked = StackedTransform(FLOWS[name], FACTORS, 9)
        finally:
            torch.set_default_dtype(torch.float32)
        x = value(FACTORS, 9, 9).to(dtype)
        y = stacked(x)
        assert y.dtype == dtype
        assert (y - x).abs().max() <= START.get(name, tolerance)
        assert stacked.log_abs_det_jacobian(x, y).abs().max() <= max(2 * 9 * START.get(name, 0), tolerance)

    def test_every_parameter_gets_a_gradient(self, name):
        stacked = stack(FLOWS[name])
        x = value(8, FACTORS, ROWS, DIM).requires_grad_()
        y = stacked(x)
        (y.square().sum() + stacked.log_abs_det_jacobian(x, y).sum()).backward()
        for parameter in (x, *stacked.parameters()):
            assert parameter.grad.isfinite().all()
            assert all(gradient.any() for gradient in parameter.grad.movedim(-3 if parameter is x else 0, 0))

    def test_log_det_is_that_of_the_jacobian(self, name):
        check_log_det(stack(FLOWS[name]), value(FACTORS, ROWS, DIM))

    def test_one_by_one_gives_the_same_numbers(self, name):
        together, apart = (stack(FLOWS[name], vectorize=vectorize) for vectorize in (True, False))
        results = []
        for stacked in (together, apart):
            x = value(2, FACTORS, ROWS, DIM)
            y = stacked(x)
            ladj = stacked.log_abs_det_jacobian(x, y)
            gradients = torch.autograd.grad(y.square().sum() + ladj.sum(), list(stacked.parameters()))
            inverse = stacked.inv(x) if name in BOTH_WAYS else x
            results.append([y, ladj, inverse, *gradients])
        torch.testing.assert_close(*results, rtol=0, atol=1e-9)

    def test_loads_into_a_stack_of_another_seed(self, name):
        saved, loaded = stack(FLOWS[name]), stack(FLOWS[name], seed=7)
        x = value(FACTORS, ROWS, DIM)
        assert not torch.equal(loaded(x), saved(x))
        loaded.load_state_dict(saved.state_dict())
        assert torch.equal(loaded(x), saved(x))
        if name in BOTH_WAYS:
            assert torch.equal(loaded.inv(x), saved.inv(x))

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
        assert any(not torch.equal(first[key], other[key]) for key in first)

    def test_copies_after_a_call(self, name):
        stacked = stack(FLOWS[name])
        x = value(FACTORS, ROWS, DIM)
        y = stacked(x)
        twin = copy.deepcopy(stacked)
        assert torch.equal(twin(x), y)
        perturb(twin)
        assert not torch.equal(twin(x), y)
        assert torch.equal(stacked.eval()(x.clone()), y)

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


class WrongSign(type(affine_autoregressive(2))):
    def log_abs_det_jacobian(self, x, y):
        return -super().log_abs_det_jacobian(x, y)


def wrong_sign(dim):
    return WrongSign(affine_autoregressive(dim).arn)


@pytest.mark.parametrize("fault", [wrong_sign, pyro_transforms.Sylvester])
def test_the_jacobian_catches_a_wrong_log_det(fault):
    # The second fault is found, not planted: the log-det of Pyro 1.9's own Sylvester flow needs Q = I.
    with pytest.raises(AssertionError, match="not close"):
        check_log_det(stack(fault), value(FACTORS, ROWS, DIM))


def pyro_affine(dim):
    return pyro_transforms.AffineAutoregressive(AutoRegressiveNN(dim, [16, 16]))


def pyro_neural(dim):
    return pyro_transforms.NeuralAutoregressive(AutoRegressiveNN(dim, [16, 16], [4, 4, 4]), hidden_units=4)


def pyro_coupling(dim):
    return pyro_transforms.AffineCoupling(dim // 2, DenseNN(dim // 2, [16, 16], [dim - dim // 2] * 2))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (affine_autoregressive, pyro_affine),
        (neural_autoregressive, pyro_neural),
        (affine_coupling, pyro_coupling),
        (planar, pyro_transforms.planar),
        (radial, pyro_transforms.radial),
    ],
)
def test_a_stack_is_a_loop_over_pyros_own(ours, theirs):
    stacked = stack(ours)
    x = value(FACTORS, ROWS, DIM)
    y = stacked(x)
    ladj = stacked.log_abs_det_jacobian(x, y)
    for factor in range(FACTORS):
        single = theirs(DIM).double()
        state = stacked.copies.transform.state_dict()
        single.load_state_dict({key: tensor[factor] for key, tensor in state.items()})
        torch.testing.assert_close(single(x[factor]), y[factor], rtol=0, atol=1e-12)
        truth = single.log_abs_det_jacobian(x[factor], single(x[factor]))
        torch.testing.assert_close(truth, ladj[factor], rtol=0, atol=1e-6 if theirs is pyro_neural else 1e-12)


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_flows_work_alone(name):
    flow = perturb(FLOWS[name](DIM).double())
    for x in (value(DIM), value(7, DIM)):
        y = flow(x)
        assert y.shape == x.shape
        assert flow.log_abs_det_jacobian(x, y).shape == x.shape[:-1]
        torch.testing.assert_close(flow.inv(y.clone()), x, rtol=0, atol=1e-9)


def test_neural_log_det_is_of_the_point_asked_for():
    flow = perturb(neural_autoregressive(DIM).double())
    x, other = value(DIM), value(DIM, seed=5)
    y = flow(x)
    truth = flow.log_abs_det_jacobian(x, y)
    flow(other)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), truth, rtol=0, atol=0)


def test_elementwise_affine_flow_has_the_closed_form_kl():
    stacked = stack(affine_autoregressive, perturbed=False)
    last = stacked.copies.transform.arn.layers[-1]
    shift, log_scale = value(FACTORS, 1, DIM), 0.3 * value(FACTORS, 1, DIM, seed=3)
    with torch.no_grad():  # the weights are zero, so the biases are all there is
        last.bias.copy_(torch.cat([shift, log_scale], -1).squeeze(-2))
    loc, scale = value(FACTORS, ROWS, DIM, seed=4), 0.1 + value(FACTORS, ROWS, DIM, seed=5).abs()

    flow = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(2), [stacked])
    prior = dist.Normal(torch.zeros_like(loc), 1.0).to_event(2)
    # The one-draw estimate is quadratic in the noise, so its mean over noise +1 and -1 is its expectation.
    estimates = []
    for noise in (1.0, -1.0):
        draw = stacked(loc + noise * scale)
        estimates.append(flow.log_prob(draw) - prior.log_prob(draw))

    a = log_scale.exp()
    truth = torch.distributions.kl_divergence(dist.Normal(a * loc + shift, a * scale).to_event(2), prior)
    torch.testing.assert_close(torch.stack(estimates).mean(0), truth, rtol=1e-12, atol=0)


def test_factors_draw_their_own_orders_and_networks():
    state = StackedTransform(iterated(2, affine_coupling), 8, 9).state_dict()
    state |= StackedTransform(affine_autoregressive, 8, 9).state_dict()
    drawn = [
        tensor for name, tensor in state.items() if "permutation" in name or name.endswith("layers.0.weight")
    ]
    assert len(drawn) == 6
    for tensor in drawn:
        assert len(tensor.flatten(1).unique(dim=0)) == 8


def test_forgets_when_parameters_change():
    stacked = stack(affine_autoregressive)
    x = value(FACTORS, ROWS, DIM)
    y = stacked(x)
    assert stacked(x) is y
    perturb(stacked)
    fresh = StackedTransform(affine_autoregressive, FACTORS, DIM).double()
    fresh.load_state_dict(stacked.state_dict())
    assert torch.equal(stacked(x), fresh(x))
    assert not torch.equal(stacked(x), y)
    torch.testing.assert_close(stacked.inv(y), fresh.inv(y), rtol=0, atol=0)


@pytest.mark.parametrize("vectorize", [True, False])
def test_keeps_no_tensor_of_the_call(vectorize):
    stacked = stack(iterated(2, sylvester), vectorize=vectorize)
    stacked(value(FACTORS, ROWS, DIM))
    kept = [
        name
        for module in stacked.copies.modules()
        for name, kept in vars(module).items()
        if isinstance(kept, torch.Tensor) or (name == "_cached_x_y" and kept != (None, None))
    ]
    assert kept == []


def test_an_optimizer_trains_the_flow_to_a_target():
    stacked = stack(affine_autoregressive, perturbed=False)
    base = dist.Normal(torch.zeros(FACTORS, ROWS, DIM, dtype=torch.float64), 1.0).to_event(2)
    flow = dist.TransformedDistribution(base, [stacked])
    target = dist.Normal(
        torch.tensor([1.0, -1.0, 0.0]).double().reshape(3, 1, 1).expand(3, ROWS, DIM), 0.5
    ).to_event(2)
    optimizer = torch.optim.Adam(stacked.parameters(), lr=0.05)
    for step in range(80):
        with torch.random.fork_rng():
            torch.manual_seed(step)
            draw = flow.rsample((16,))
        loss = (flow.log_prob(draw) - target.log_prob(draw)).mean(0)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert loss.abs().max() < 0.3  # from about 10 nats


@pytest.mark.parametrize("factory", [affine_coupling, spline_coupling])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_iterated_couplings_reach_every_coordinate(factory, dim):
    for seed in range(5):
        stacked = stack(iterated(2, factory), factors=1, dim=dim, seed=seed)
        x = value(1, 1, dim)
        slopes = torch.autograd.functional.jacobian(stacked, x).reshape(dim, dim).diagonal()
        assert (slopes != 1).all()


@pytest.mark.parametrize("factory", [planar, radial, sylvester])
def test_one_dimension_works(factory):
    check_log_det(stack(factory, dim=1), value(FACTORS, ROWS, 1))


@pytest.mark.parametrize(
    "factory",
    [affine_autoregressive, inverse_autoregressive, neural_autoregressive, affine_coupling, spline_coupling],
)
def test_one_dimension_is_refused_with_the_cure(factory):
    with pytest.raises(ValueError, match=r"dim of \w+ must be at least 2, got 1: .*'planar'"):
        factory(1)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_flows_are_small(name):
    # The paper's network for nine columns has 1,554 parameters.
    size = sum(parameter.numel() for parameter in TRANSFORMS[name](9).parameters())
    assert size <= {"neural_autoregressive": 2268, "spline_coupling": 1687}.get(name, 738)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: affine_autoregressive(5, hidden_dims=[4]), r"hidden_dims .* none below dim = 5, got \[4\]"),
        (lambda: affine_autoregressive(5, hidden_dims=[]), "at least one size"),
        (lambda: sylvester(3, num_reflections=4), "num_reflections must be from 1 to dim = 3, got 4"),
        (lambda: iterated(0, planar), "depth must be at least 1, got 0"),
        (lambda: StackedTransform(planar, 0, 3), "num_factors must be at least 1, got 0"),
        (
            lambda: StackedTransform(planar, 2, 3)(torch.zeros(3, 4, 3)),
            r"\(..., 2, rows, 3\), got \(3, 4, 3\)",
        ),
        (lambda: StackedTransform(planar, 2, 3)(torch.zeros(2, 4, 4)), "third from last"),
        (lambda: StackedTransform(pyro_transforms.permute, 2, 3), "Permutation for Permute"),
        (
            lambda: StackedTransform(lambda dim: pyro_transforms.ComposeTransform([planar(dim)]), 2, 3),
            "ComposeTransformModule for ComposeTransform",
        ),
        (lambda: StackedTransform(lambda dim: affine_autoregressive(dim).inv, 2, 3), "Inverse for .inv"),
        (
            lambda: StackedTransform(lambda dim: pyro_transforms.CholeskyTransform(), 2, 3),
            "transform of vectors",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_distribution_of_the_wrong_batch_is_refused_at_once():
    with pytest.raises(ValueError, match=r"\(..., 2, rows, 3\)"):
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(4, 3), 1.0).to_event(2), [StackedTransform(planar, 2, 3)]
        )


def test_flows_from_outside_are_looped_over():
    def outside(dim):
        first, second = pyro_affine(dim), Inverse(affine_autoregressive(dim))
        return ComposeTransformModule(
            [first, Permutation(torch.randperm(dim)), pyro_transforms.elu(), second]
        )

    stacked = stack(outside)
    assert not stacked.vectorize
    check_log_det(stacked, value(FACTORS, ROWS, DIM))


def test_elementwise_flows_without_parameters_stack():
    stacked = StackedTransform(lambda dim: pyro_transforms.LeakyReLUTransform(), FACTORS, DIM)
    check_log_det(stacked, value(FACTORS, ROWS, DIM))
