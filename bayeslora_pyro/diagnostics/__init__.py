"""Looking at a posterior: to ArviZ, to a table, to one page of HTML."""

from bayeslora_pyro.diagnostics.alarms import ALARMS as ALARMS
from bayeslora_pyro.diagnostics.alarms import Alarm as Alarm
from bayeslora_pyro.diagnostics.alarms import alarms as alarms
from bayeslora_pyro.diagnostics.arrays import load_arviz as load_arviz
from bayeslora_pyro.diagnostics.arrays import save_arviz as save_arviz
from bayeslora_pyro.diagnostics.checks import PredictiveCheck as PredictiveCheck
from bayeslora_pyro.diagnostics.checks import predictive_check as predictive_check
from bayeslora_pyro.diagnostics.collect import to_arviz as to_arviz
from bayeslora_pyro.diagnostics.compare import compare as compare
from bayeslora_pyro.diagnostics.comparison import Comparison as Comparison
from bayeslora_pyro.diagnostics.protocols import PosteriorLike as PosteriorLike
from bayeslora_pyro.diagnostics.protocols import PredictionLike as PredictionLike
from bayeslora_pyro.diagnostics.report import report as report
from bayeslora_pyro.diagnostics.simulation import SbcResult as SbcResult
from bayeslora_pyro.diagnostics.simulation import sbc as sbc
from bayeslora_pyro.diagnostics.summary import khat as khat
from bayeslora_pyro.diagnostics.summary import summary as summary
from bayeslora_pyro.diagnostics.variance import VarianceShares as VarianceShares
from bayeslora_pyro.diagnostics.variance import variance_shares as variance_shares
