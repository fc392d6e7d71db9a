"""The curvature of the likelihood at a point, and what a Laplace approximation makes of it."""

from bayeslora_pyro.curvature.accumulating import Totals as Totals
from bayeslora_pyro.curvature.accumulating import accumulate as accumulate
from bayeslora_pyro.curvature.evidence import Evidence as Evidence
from bayeslora_pyro.curvature.linearised import Gaussians as Gaussians
from bayeslora_pyro.curvature.linearised import covariances as covariances
from bayeslora_pyro.curvature.linearised import draws_of as draws_of
from bayeslora_pyro.curvature.linearised import linearised_batches as linearised_batches
from bayeslora_pyro.curvature.linearised import score_moments as score_moments
from bayeslora_pyro.curvature.recording import Record as Record
from bayeslora_pyro.curvature.recording import record as record
from bayeslora_pyro.curvature.structures import Diagonal as Diagonal
from bayeslora_pyro.curvature.structures import Full as Full
from bayeslora_pyro.curvature.structures import Kronecker as Kronecker
from bayeslora_pyro.curvature.structures import Sizes as Sizes
from bayeslora_pyro.curvature.structures import Structure as Structure

__all__ = [
    "Diagonal",
    "Evidence",
    "Full",
    "Gaussians",
    "Kronecker",
    "Record",
    "Sizes",
    "Structure",
    "Totals",
    "accumulate",
    "covariances",
    "draws_of",
    "linearised_batches",
    "record",
    "score_moments",
]
