"""Looking at a posterior: to ArviZ, to a table, to one page of HTML."""

from bayeslora_pyro.diagnostics.arrays import load_arviz as load_arviz
from bayeslora_pyro.diagnostics.arrays import save_arviz as save_arviz
from bayeslora_pyro.diagnostics.collect import to_arviz as to_arviz
from bayeslora_pyro.diagnostics.protocols import PosteriorLike as PosteriorLike
from bayeslora_pyro.diagnostics.protocols import PredictionLike as PredictionLike
from bayeslora_pyro.diagnostics.report import report as report
from bayeslora_pyro.diagnostics.summary import khat as khat
from bayeslora_pyro.diagnostics.summary import summary as summary
