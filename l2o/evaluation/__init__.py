"""Fits with any optimizer, baselines by name, results on disk."""

from l2o.extras import require

require("train", "l2o.evaluation")

from l2o.evaluation.baselines import Candidate, get_candidates
from l2o.evaluation.evaluations import evaluate
from l2o.evaluation.fit import Epoch, Fit, History
from l2o.evaluation.results import Result, distinct, read_results
from l2o.evaluation.store import ResultsDirectory
from l2o.evaluation.tables import TableError

__all__ = [
    "Candidate",
    "Epoch",
    "Fit",
    "History",
    "Result",
    "ResultsDirectory",
    "TableError",
    "distinct",
    "evaluate",
    "get_candidates",
    "read_results",
]
