"""Bayesian LoRA adapters for language models, written as Pyro programs."""

from bayeslora_pyro.config import FitConfig as FitConfig
from bayeslora_pyro.distributions import InducedNormal as InducedNormal
from bayeslora_pyro.guides import GUIDES as GUIDES
from bayeslora_pyro.guides import DeltaGuide as DeltaGuide
from bayeslora_pyro.guides import FlowGuide as FlowGuide
from bayeslora_pyro.guides import MeanFieldGuide as MeanFieldGuide
from bayeslora_pyro.inference import FitResult as FitResult
from bayeslora_pyro.inference import fit as fit
from bayeslora_pyro.methods import METHODS as METHODS
from bayeslora_pyro.models import LIKELIHOODS as LIKELIHOODS
from bayeslora_pyro.models import PRIORS as PRIORS
from bayeslora_pyro.models import BayesianLora as BayesianLora
from bayeslora_pyro.models import Choice as Choice
from bayeslora_pyro.models import Classification as Classification
from bayeslora_pyro.models import GaussianPrior as GaussianPrior
from bayeslora_pyro.models import InducingPrior as InducingPrior
from bayeslora_pyro.models import NextToken as NextToken
from bayeslora_pyro.models import PointPrior as PointPrior
from bayeslora_pyro.models import Regression as Regression
from bayeslora_pyro.posterior import Posterior as Posterior
from bayeslora_pyro.transforms import TRANSFORMS as TRANSFORMS
from bayeslora_pyro.transforms import StackedTransform as StackedTransform

__version__ = "0.1.0"

__all__ = [
    "GUIDES",
    "LIKELIHOODS",
    "METHODS",
    "PRIORS",
    "TRANSFORMS",
    "BayesianLora",
    "Choice",
    "Classification",
    "DeltaGuide",
    "FitConfig",
    "FitResult",
    "FlowGuide",
    "GaussianPrior",
    "InducedNormal",
    "InducingPrior",
    "MeanFieldGuide",
    "NextToken",
    "PointPrior",
    "Posterior",
    "Regression",
    "StackedTransform",
    "fit",
]
