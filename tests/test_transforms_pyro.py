"""Our flows against Pyro's own, and what is wrong with those, which the checks catch."""

import pyro.distributions.transforms as pyro_transforms
import pytest
import torch
from pyro.nn import AutoRegressiveNN, DenseNN

from bayeslora_pyro.transforms import (
    affine_autoregressive,
    affine_coupling,
    householder,
    matrix_exponential,
    neural_autoregressive,
    planar,
    radial,
    spline,
    spline_autoregressive,
)

from .exact import perturb
from .flows import DIM, FACTORS, ROWS, check_log_det, stack, value


def pyro_affine(dim):
    return pyro_transforms.AffineAutoregressive(AutoRegressiveNN(dim, [16, 16]))


def pyro_neural(dim):
    return pyro_transforms.NeuralAutoregressive(AutoRegressiveNN(dim, [16, 16], [4, 4, 4]), hidden_units=4)


def pyro_coupling(dim):
    return pyro_transforms.AffineCoupling(dim // 2, DenseNN(dim // 2, [16, 16], [dim - dim // 2] * 2))


def pyro_householder(dim):
    with pytest.warns(UserWarning, match="over-parametrization"):
        return pyro_transforms.Householder(dim, 6)


def pyro_exponential(dim):
    return pyro_transforms.MatrixExponential(dim, iterations=30)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (affine_autoregressive, pyro_affine),
        (neural_autoregressive, pyro_neural),
        (affine_coupling, pyro_coupling),
        (householder, pyro_householder),
        (matrix_exponential, pyro_exponential),
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
        truth = single.log_abs_det_jacobian(x[factor], single(x[factor])).expand(ROWS)
        torch.testing.assert_close(truth, ladj[factor], rtol=0, atol=1e-6 if theirs is pyro_neural else 1e-12)


class WrongSign(type(affine_autoregressive(2))):
    def log_abs_det_jacobian(self, x, y):
        return -super().log_abs_det_jacobian(x, y)


class ShortSeries(pyro_transforms.MatrixExponential):
    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y).expand(x.shape[:-1])


def wrong_sign(dim):
    return WrongSign(affine_autoregressive(dim).arn)


@pytest.mark.parametrize(
    "fault",
    [
        wrong_sign,
        # The others are found, not planted. Sylvester needs Q = I; the series of the exponential ends too soon; batch
        # norm draws with the moving variance and scores with that of the draws; two add 1e-8 in the log-det alone.
        pyro_transforms.Sylvester,
        ShortSeries,
        pyro_transforms.BatchNorm,
        pyro_transforms.polynomial,
        pyro_transforms.BlockAutoregressive,
    ],
)
def test_the_jacobian_catches_a_wrong_log_det(fault):
    with pytest.raises(AssertionError, match=r"not close|do not match"):
        check_log_det(stack(fault), value(FACTORS, ROWS, DIM))


def test_neural_flow_holds_in_the_tails_in_single_precision():
    # With all sigmoids alike it is the identity, there too. Pyro's stops at about 17.
    def tails(flow):
        with torch.no_grad():
            for parameter in flow.arn.layers[-1].parameters():
                parameter[-20:] = 0.0
        x = torch.tensor([[-40.0, -20.0, -10.0, 10.0, 40.0]])
        return (flow(x) - x).abs().max(), flow.log_abs_det_jacobian(x, flow(x)).abs().max()

    ours = neural_autoregressive(DIM)
    assert max(tails(ours)) < 1e-5
    theirs = pyro_neural(DIM)
    theirs.load_state_dict(ours.state_dict())
    assert tails(theirs)[0] > 20


def test_pyros_affine_inverse_is_float32_at_heart():
    with pytest.raises(RuntimeError, match="same dtype"):
        stack(pyro_affine).inv(value(FACTORS, ROWS, DIM))


def test_an_elementwise_spline_is_the_start_of_an_autoregressive_one():
    ours, autoregressive = spline(DIM).double(), spline_autoregressive(DIM).double()
    perturb(ours)
    last = autoregressive.spline.nn.layers[-1]
    with torch.no_grad():  # the weights are zero, so the biases are the parameters of the splines
        last.bias.copy_(torch.cat([parameter.T.flatten() for parameter in ours.parameters()]))
    x = value(7, DIM)
    torch.testing.assert_close(autoregressive(x), ours(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        autoregressive.log_abs_det_jacobian(x, x), ours.log_abs_det_jacobian(x, x), rtol=0, atol=1e-12
    )
