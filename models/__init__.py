"""The generative side: priors, likelihoods, and the model that joins them."""

from bayeslora_pyro.models.base import Prior as Prior
from bayeslora_pyro.models.gaussian import GaussianPrior as GaussianPrior
from bayeslora_pyro.models.gaussian import PointPrior as PointPrior
from bayeslora_pyro.models.inducing import InducingPrior as InducingPrior
from bayeslora_pyro.models.likelihoods import Choice as Choice
from bayeslora_pyro.models.likelihoods import Classification as Classification
from bayeslora_pyro.models.likelihoods import Likelihood as Likelihood
from bayeslora_pyro.models.likelihoods import NextToken as NextToken
from bayeslora_pyro.models.likelihoods import Regression as Regression
from bayeslora_pyro.models.lora import LIKELIHOODS as LIKELIHOODS
from bayeslora_pyro.models.lora import PRIORS as PRIORS
from bayeslora_pyro.models.lora import BayesianLora as BayesianLora

__all__ = [
    "LIKELIHOODS",
    "PRIORS",
    "BayesianLora",
    "Choice",
    "Classification",
    "GaussianPrior",
    "InducingPrior",
    "Likelihood",
    "NextToken",
    "PointPrior",
    "Prior",
    "Regression",
]
