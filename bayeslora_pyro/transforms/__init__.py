"""Normalizing flows as factories `dim -> Transform`, and stacks of independent copies of one.

Like any `nn.Module`, a flow made by a factory draws its first parameters from torch's global generator;
`StackedTransform` makes its copies under a seed of its own and leaves that generator as it was.
"""

from ..types import TransformFactory
from .autoregressive import affine_autoregressive as affine_autoregressive
from .autoregressive import inverse_autoregressive as inverse_autoregressive
from .autoregressive import neural_autoregressive as neural_autoregressive
from .composition import Inverse as Inverse
from .composition import Permutation as Permutation
from .composition import iterated as iterated
from .coupling import affine_coupling as affine_coupling
from .coupling import spline_coupling as spline_coupling
from .residual import planar as planar
from .residual import radial as radial
from .residual import sylvester as sylvester
from .stacked import StackedTransform as StackedTransform

TRANSFORMS: dict[str, TransformFactory] = {
    "affine_autoregressive": affine_autoregressive,
    "affine_coupling": affine_coupling,
    "inverse_autoregressive": inverse_autoregressive,
    "neural_autoregressive": neural_autoregressive,
    "planar": planar,
    "radial": radial,
    "spline_coupling": spline_coupling,
    "sylvester": sylvester,
}
"""The flows by name. To add one, write its factory and its row here."""
