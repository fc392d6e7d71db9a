"""The flows under test, stacks of them, and the dense Jacobian that their log-dets are held against."""

import torch

from bayeslora_pyro.transforms import TRANSFORMS, StackedTransform, find_transform, iterated

from .exact import perturb, rand

TWICE = ("affine_autoregressive", "affine_coupling", "planar", "spline_coupling")
COMPOSED = ("permute+affine_autoregressive", "householder+spline+batch_norm", "spline_coupling+sylvester")
FLOWS = {
    **TRANSFORMS,
    **{f"{name} twice": iterated(2, TRANSFORMS[name]) for name in TWICE},
    **{names: find_transform(names) for names in COMPOSED},
}
# How far from the identity a flow may start, where it cannot start there. Reorderings and Zuko's networks are none.
START = {"neural_autoregressive": 0.1, "polynomial": 0.02}
ELSEWHERE = {"permute", "permute+affine_autoregressive", "zuko_naf"}
ONE_WAY = {
    name
    for name in FLOWS
    if {
        "neural_autoregressive",
        "block_autoregressive",
        "planar",
        "polynomial",
        "radial",
        "sylvester",
        "zuko_naf",
    }
    & set(name.removesuffix(" twice").split("+"))
}
BOTH_WAYS = sorted(FLOWS.keys() - ONE_WAY)
NOTHING_AT_RANDOM = {"batch_norm", "matrix_exponential", "spline"}
FACTORS, ROWS, DIM = 3, 2, 5


def stack(
    factory,
    *,
    seed=0,
    perturbed=True,
    scale=0.3,
    factors=FACTORS,
    dim=DIM,
    vectorize=None,
    kind=StackedTransform,
):
    """Build a stack in float32, as users do, and take it to float64."""
    stacked = kind(factory, factors, dim, seed=seed, vectorize=vectorize).double()
    return perturb(stacked, scale) if perturbed else stacked


def value(*shape, seed=2):
    return rand(*shape, seed=seed)


def check_log_det(transform, x, event_dim=1):
    """Compare with the dense Jacobian, which must also be block-diagonal over factors and rows."""
    shape, size = x.shape[: x.dim() - event_dim], x.shape[x.dim() - event_dim :].numel()
    blocks = shape.numel()
    dense = torch.autograd.functional.jacobian(transform, x).reshape(blocks, size, blocks, size)
    mixed = dense.transpose(1, 2)[~torch.eye(blocks, dtype=torch.bool)]
    assert mixed.abs().max() == 0
    truth = torch.linalg.slogdet(dense.diagonal(dim1=0, dim2=2).movedim(-1, 0))[1].reshape(shape)
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, transform(x)), truth, rtol=0, atol=1e-9)


def check_vectorized_is_looped(factory, both_ways, **options):
    """Compare values, log-dets, inverses and gradients of a stack that runs at once with one that loops."""
    results = []
    for vectorize in (None, False):
        stacked = stack(factory, vectorize=vectorize, **options)
        x = value(2, FACTORS, ROWS, DIM)
        y = stacked(x)
        ladj = stacked.log_abs_det_jacobian(x, y)
        parameters = list(stacked.parameters())
        loss = y.square().sum() + ladj.sum()
        gradients = torch.autograd.grad(loss, parameters) if parameters else ()
        results.append([y, ladj, stacked.inv(x) if both_ways else x, *gradients])
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)


def check_gradients(stacked, x):
    """Check that a loss moves all parameters, and that of each factor."""
    x = x.requires_grad_()
    y = stacked(x)
    (y.square().sum() + stacked.log_abs_det_jacobian(x, y).sum()).backward()
    for tensor in (x, *stacked.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    return list(stacked.parameters())
