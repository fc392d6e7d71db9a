"""Normalizing flows as factories `dim -> Transform`, and stacks of independent copies of one.

Like any `nn.Module`, a flow made by a factory draws its first parameters from torch's global generator;
`StackedTransform` makes its copies under a seed of its own and leaves that generator as it was.

Of `pyro.distributions.transforms`, those are left out that are no flows of R^d with something to learn: changes of
support (Cholesky factors, ordered and positive vectors, simplices, powers, softplus, tanh), the normalisation to a
sphere, which is no bijection, channel permutations, which are of images, and fixed maps without parameters (Haar,
discrete cosine, ELU, leaky ReLU, an affine map of given numbers). The conditional variants are all one here:
`ConditionedTransform`.
"""

from ..types import TransformFactory
from .autoregressive import affine_autoregressive as affine_autoregressive
from .autoregressive import inverse_autoregressive as inverse_autoregressive
from .autoregressive import neural_autoregressive as neural_autoregressive
from .block import block_autoregressive as block_autoregressive
from .composition import Inverse as Inverse
from .composition import Permutation as Permutation
from .composition import composed as composed
from .composition import iterated as iterated
from .conditioned import ConditionedTransform as ConditionedTransform
from .coupling import affine_coupling as affine_coupling
from .coupling import spline_coupling as spline_coupling
from .linear import batch_norm as batch_norm
from .linear import householder as householder
from .linear import matrix_exponential as matrix_exponential
from .linear import permute as permute
from .matrix import MatrixTransform as MatrixTransform
from .polynomial import polynomial as polynomial
from .remembering import RememberingTransform as RememberingTransform
from .residual import planar as planar
from .residual import radial as radial
from .residual import sylvester as sylvester
from .splines import spline as spline
from .splines import spline_autoregressive as spline_autoregressive
from .stacked import StackedTransform as StackedTransform
from .zuko_flows import from_zuko as from_zuko
from .zuko_flows import zuko_maf as zuko_maf
from .zuko_flows import zuko_naf as zuko_naf
from .zuko_flows import zuko_nsf as zuko_nsf

TRANSFORMS: dict[str, TransformFactory] = {
    "affine_autoregressive": affine_autoregressive,
    "affine_coupling": affine_coupling,
    "batch_norm": batch_norm,
    "block_autoregressive": block_autoregressive,
    "householder": householder,
    "inverse_autoregressive": inverse_autoregressive,
    "matrix_exponential": matrix_exponential,
    "neural_autoregressive": neural_autoregressive,
    "permute": permute,
    "planar": planar,
    "polynomial": polynomial,
    "radial": radial,
    "spline": spline,
    "spline_autoregressive": spline_autoregressive,
    "spline_coupling": spline_coupling,
    "sylvester": sylvester,
    "zuko_maf": zuko_maf,
    "zuko_naf": zuko_naf,
    "zuko_nsf": zuko_nsf,
}
"""The flows by name. To add one, write its factory and its row here."""


def find_transform(names: str) -> TransformFactory:
    """Look a flow up by name, or several by their names joined with `+`, the first first.

    Args:
        names: A name in `TRANSFORMS`, or such as `"permute+affine_coupling"`.

    Returns:
        The factory.

    Raises:
        ValueError: If a name is not known.
    """
    parts = names.split("+")
    if unknown := [name for name in parts if name not in TRANSFORMS]:
        raise ValueError(
            f"transform={names!r} is not known{f': {unknown[0]!r} is no flow' if len(parts) > 1 else ''}. "
            f"Choose one of {', '.join(TRANSFORMS)}."
        )
    factories = [TRANSFORMS[name] for name in parts]
    return composed(*factories) if len(factories) > 1 else factories[0]
