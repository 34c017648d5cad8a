"""How often does a model solve a problem within k attempts, and how sure is that?

Counts go in (``samples`` drawn and ``correct`` among them, per problem), numbers with intervals come out:

* :func:`pass_at_k`: the unbiased estimator per problem; :func:`estimate_pass_at_k`: the mean with two intervals, one
  for new problems of the same kind and one for these very problems.
* :func:`compare_models`: two models on the same problems, paired.
* :func:`fit_beta`, :func:`fit_k_exponent`, :func:`beta_pass_at_k`: the spread of difficulties behind the curve in k.
* :func:`rate_from_attempts`, :func:`pass_until`: very low rates, by sampling until a problem has passed.

Only numpy is imported at once; scipy is imported inside the functions that need it.
"""

from scalefed.passk.difficulty import BetaFit, ExponentFit, beta_pass_at_k, fit_beta, fit_k_exponent
from scalefed.passk.estimator import failures_at_k, pass_at_k
from scalefed.passk.intervals import METHODS, PassAtK, PassRate, estimate_pass_at_k
from scalefed.passk.paired import Comparison, compare_models
from scalefed.passk.sequential import RateEstimate, pass_until, rate_from_attempts

__all__ = [
    "METHODS",
    "BetaFit",
    "Comparison",
    "ExponentFit",
    "PassAtK",
    "PassRate",
    "RateEstimate",
    "beta_pass_at_k",
    "compare_models",
    "estimate_pass_at_k",
    "failures_at_k",
    "fit_beta",
    "fit_k_exponent",
    "pass_at_k",
    "pass_until",
    "rate_from_attempts",
]
