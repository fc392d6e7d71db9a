"""How accurate, how calibrated and how aware of its own errors a prediction is.

``log_probs`` are normalised log-probabilities, `(draw, item, class)` or already averaged `(item, class)`;
``labels`` are class indices `(item,)`. Draws are averaged as probabilities, in log space, before anything
else: one definition for every number of draws, one included. All is computed in float64 on the CPU.
"""

from bayeslora_pyro.metrics.calibration import ReliabilityBins as ReliabilityBins
from bayeslora_pyro.metrics.calibration import ece as ece
from bayeslora_pyro.metrics.calibration import reliability_bins as reliability_bins
from bayeslora_pyro.metrics.calibration import temperature_scale as temperature_scale
from bayeslora_pyro.metrics.correlation import linear_correlation as linear_correlation
from bayeslora_pyro.metrics.correlation import rank_correlation as rank_correlation
from bayeslora_pyro.metrics.evaluation import bootstrap as bootstrap
from bayeslora_pyro.metrics.evaluation import evaluate_log_probs as evaluate_log_probs
from bayeslora_pyro.metrics.perplexity import Perplexity as Perplexity
from bayeslora_pyro.metrics.perplexity import perplexity as perplexity
from bayeslora_pyro.metrics.predictive import aleatoric as aleatoric
from bayeslora_pyro.metrics.predictive import entropy as entropy
from bayeslora_pyro.metrics.predictive import epistemic as epistemic
from bayeslora_pyro.metrics.predictive import mean_log_probs as mean_log_probs
from bayeslora_pyro.metrics.regression import absolute_error as absolute_error
from bayeslora_pyro.metrics.regression import error_correlation as error_correlation
from bayeslora_pyro.metrics.regression import gaussian_mixture_nll as gaussian_mixture_nll
from bayeslora_pyro.metrics.regression import interval_coverage as interval_coverage
from bayeslora_pyro.metrics.regression import mae as mae
from bayeslora_pyro.metrics.regression import predictive_cdf as predictive_cdf
from bayeslora_pyro.metrics.regression import predictive_std as predictive_std
from bayeslora_pyro.metrics.regression import rmse as rmse
from bayeslora_pyro.metrics.scores import accuracy as accuracy
from bayeslora_pyro.metrics.scores import brier as brier
from bayeslora_pyro.metrics.scores import nll as nll
from bayeslora_pyro.metrics.selective import aurc as aurc
from bayeslora_pyro.metrics.selective import auroc as auroc
from bayeslora_pyro.metrics.selective import risk_coverage as risk_coverage
from bayeslora_pyro.metrics.spread import IntervalCalibration as IntervalCalibration
from bayeslora_pyro.metrics.spread import Sparsification as Sparsification
from bayeslora_pyro.metrics.spread import ause as ause
from bayeslora_pyro.metrics.spread import interval_calibration as interval_calibration
from bayeslora_pyro.metrics.spread import sparsification as sparsification
