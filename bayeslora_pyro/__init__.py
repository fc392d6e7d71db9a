"""Bayesian LoRA adapters for language models, written as Pyro programs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayeslora_pyro.config import FitConfig as FitConfig
    from bayeslora_pyro.diagnostics import to_arviz as to_arviz
    from bayeslora_pyro.diagnostics.compare import compare as compare
    from bayeslora_pyro.diagnostics.report import report as report
    from bayeslora_pyro.distributions import InducedNormal as InducedNormal
    from bayeslora_pyro.ensemble import Ensemble as Ensemble
    from bayeslora_pyro.guides import GUIDES as GUIDES
    from bayeslora_pyro.guides import DeltaGuide as DeltaGuide
    from bayeslora_pyro.guides import FlowGuide as FlowGuide
    from bayeslora_pyro.guides import FullRankGuide as FullRankGuide
    from bayeslora_pyro.guides import LaplaceGuide as LaplaceGuide
    from bayeslora_pyro.guides import LowRankGuide as LowRankGuide
    from bayeslora_pyro.guides import MatrixNormalGuide as MatrixNormalGuide
    from bayeslora_pyro.guides import MeanFieldGuide as MeanFieldGuide
    from bayeslora_pyro.guides import MixtureGuide as MixtureGuide
    from bayeslora_pyro.guides import SquaredScaleGuide as SquaredScaleGuide
    from bayeslora_pyro.inference import FitResult as FitResult
    from bayeslora_pyro.inference import fit as fit
    from bayeslora_pyro.laplace import LaplaceConfig as LaplaceConfig
    from bayeslora_pyro.laplace import laplace_posterior as laplace_posterior
    from bayeslora_pyro.methods import METHODS as METHODS
    from bayeslora_pyro.models import LIKELIHOODS as LIKELIHOODS
    from bayeslora_pyro.models import PRIORS as PRIORS
    from bayeslora_pyro.models import ArdPrior as ArdPrior
    from bayeslora_pyro.models import BayesianLora as BayesianLora
    from bayeslora_pyro.models import Choice as Choice
    from bayeslora_pyro.models import Classification as Classification
    from bayeslora_pyro.models import GaussianPrior as GaussianPrior
    from bayeslora_pyro.models import GlobalInducingPrior as GlobalInducingPrior
    from bayeslora_pyro.models import HorseshoePrior as HorseshoePrior
    from bayeslora_pyro.models import InducingPrior as InducingPrior
    from bayeslora_pyro.models import LaplacePrior as LaplacePrior
    from bayeslora_pyro.models import MatrixNormalPrior as MatrixNormalPrior
    from bayeslora_pyro.models import NextToken as NextToken
    from bayeslora_pyro.models import PointPrior as PointPrior
    from bayeslora_pyro.models import RankSpacePrior as RankSpacePrior
    from bayeslora_pyro.models import Regression as Regression
    from bayeslora_pyro.models import effective_ranks as effective_ranks
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
    "ArdPrior",
    "BayesianLora",
    "Choice",
    "Classification",
    "DeltaGuide",
    "Ensemble",
    "FitConfig",
    "FitResult",
    "FlowGuide",
    "FullRankGuide",
    "GaussianPrior",
    "GlobalInducingPrior",
    "HorseshoePrior",
    "InducedNormal",
    "InducingPrior",
    "LaplaceConfig",
    "LaplaceGuide",
    "LaplacePrior",
    "LowRankGuide",
    "MatrixNormalGuide",
    "MatrixNormalPrior",
    "MeanFieldGuide",
    "MixtureGuide",
    "NextToken",
    "PointPrior",
    "Posterior",
    "RankSpacePrior",
    "Regression",
    "SquaredScaleGuide",
    "StackedTransform",
    "compare",
    "effective_ranks",
    "fit",
    "laplace_posterior",
    "report",
    "to_arviz",
]

_PARTS = (
    "config",
    "distributions",
    "transforms",
    "models",
    "guides",
    "posterior",
    "ensemble",
    "inference",
    "laplace",
    "methods",
    "diagnostics",
    "metrics",
    "tasks",
)
"""Where the names are looked for, those that import least first."""

if not TYPE_CHECKING:  # type checkers would take any name for granted

    def __getattr__(name: str) -> Any:
        """Finds a name when it is first used: torch takes seconds, which `bayeslora --help` need not wait for."""
        from importlib import import_module

        if name in _PARTS:
            return import_module(f"{__name__}.{name}")
        if name in __all__:
            for part in _PARTS:
                module = import_module(f"{__name__}.{part}")
                if hasattr(module, name):
                    return globals().setdefault(name, getattr(module, name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__, *_PARTS})
