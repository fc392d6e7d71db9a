"""The generative side: priors, likelihoods, and the model that joins them."""

from bayeslora_pyro.models.ard import ArdPrior as ArdPrior
from bayeslora_pyro.models.base import LatentPrior as LatentPrior
from bayeslora_pyro.models.base import Prior as Prior
from bayeslora_pyro.models.catalogue import LIKELIHOODS as LIKELIHOODS
from bayeslora_pyro.models.catalogue import PRIORS as PRIORS
from bayeslora_pyro.models.choice import Choice as Choice
from bayeslora_pyro.models.gaussian import GaussianPrior as GaussianPrior
from bayeslora_pyro.models.gaussian import PointPrior as PointPrior
from bayeslora_pyro.models.global_inducing import GlobalInducingPrior as GlobalInducingPrior
from bayeslora_pyro.models.inducing import InducingPrior as InducingPrior
from bayeslora_pyro.models.likelihood import Likelihood as Likelihood
from bayeslora_pyro.models.likelihoods import Classification as Classification
from bayeslora_pyro.models.likelihoods import NextToken as NextToken
from bayeslora_pyro.models.likelihoods import Regression as Regression
from bayeslora_pyro.models.lora import BayesianLora as BayesianLora
from bayeslora_pyro.models.matrix_normal import MatrixNormalPrior as MatrixNormalPrior
from bayeslora_pyro.models.rank_space import RankSpacePrior as RankSpacePrior
from bayeslora_pyro.models.ranks import effective_rank as effective_rank
from bayeslora_pyro.models.ranks import effective_ranks as effective_ranks
from bayeslora_pyro.models.relative_noise import RelativeNoisePrior as RelativeNoisePrior
from bayeslora_pyro.models.sparse import HorseshoePrior as HorseshoePrior
from bayeslora_pyro.models.sparse import LaplacePrior as LaplacePrior
from bayeslora_pyro.models.weights import WeightPrior as WeightPrior

__all__ = [
    "LIKELIHOODS",
    "PRIORS",
    "ArdPrior",
    "BayesianLora",
    "Choice",
    "Classification",
    "GaussianPrior",
    "GlobalInducingPrior",
    "HorseshoePrior",
    "InducingPrior",
    "LaplacePrior",
    "LatentPrior",
    "Likelihood",
    "MatrixNormalPrior",
    "NextToken",
    "PointPrior",
    "Prior",
    "RankSpacePrior",
    "Regression",
    "RelativeNoisePrior",
    "WeightPrior",
    "effective_rank",
    "effective_ranks",
]
