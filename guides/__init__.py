"""The inference side: variational families."""

from bayeslora_pyro.guides.amortised_noise import AmortisedNoiseGuide as AmortisedNoiseGuide
from bayeslora_pyro.guides.base import Guide as Guide
from bayeslora_pyro.guides.delta import DeltaGuide as DeltaGuide
from bayeslora_pyro.guides.dropout import DropoutGuide as DropoutGuide
from bayeslora_pyro.guides.flow import FlowGuide as FlowGuide
from bayeslora_pyro.guides.full_rank import FullRankGuide as FullRankGuide
from bayeslora_pyro.guides.laplace import LaplaceGuide as LaplaceGuide
from bayeslora_pyro.guides.low_rank import LowRankGuide as LowRankGuide
from bayeslora_pyro.guides.matrix_normal import MatrixNormalGuide as MatrixNormalGuide
from bayeslora_pyro.guides.mean_field import MeanFieldGuide as MeanFieldGuide
from bayeslora_pyro.guides.mixture import MixtureGuide as MixtureGuide
from bayeslora_pyro.guides.squared_scale import SquaredScaleGuide as SquaredScaleGuide

__all__ = [
    "GUIDES",
    "AmortisedNoiseGuide",
    "DeltaGuide",
    "DropoutGuide",
    "FlowGuide",
    "FullRankGuide",
    "Guide",
    "LaplaceGuide",
    "LowRankGuide",
    "MatrixNormalGuide",
    "MeanFieldGuide",
    "MixtureGuide",
    "SquaredScaleGuide",
]

GUIDES: dict[str, type[Guide]] = {
    "delta": DeltaGuide,
    "mean_field": MeanFieldGuide,
    "squared_scale": SquaredScaleGuide,
    "matrix_normal": MatrixNormalGuide,
    "low_rank": LowRankGuide,
    "full_rank": FullRankGuide,
    "mixture": MixtureGuide,
    "flow": FlowGuide,
    "dropout": DropoutGuide,
    "laplace": LaplaceGuide,
    "amortised_noise": AmortisedNoiseGuide,
}
"""The guides by name."""
