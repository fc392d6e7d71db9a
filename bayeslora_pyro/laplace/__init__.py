"""Laplace approximations: a posterior for a LoRA that is trained already."""

from bayeslora_pyro.laplace.approximation import random_pattern as random_pattern
from bayeslora_pyro.laplace.config import LaplaceConfig as LaplaceConfig
from bayeslora_pyro.laplace.posterior import check_likelihood as check_likelihood
from bayeslora_pyro.laplace.posterior import check_tuning as check_tuning
from bayeslora_pyro.laplace.posterior import laplace_posterior as laplace_posterior

__all__ = ["LaplaceConfig", "check_likelihood", "check_tuning", "laplace_posterior", "random_pattern"]
