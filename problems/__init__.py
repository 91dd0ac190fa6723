"""What is optimized: datasets, networks, and the problems made of them. Light to import."""

from . import networks, prepare, small
from .catalog import PROBLEMS, get_problem, is_own
from .dataset import Batch, Dataset, DatasetUnavailable, ProblemError
from .datasets import load_dataset
from .problem import Problem

__all__ = [
    "PROBLEMS",
    "Batch",
    "Dataset",
    "DatasetUnavailable",
    "Problem",
    "ProblemError",
    "get_problem",
    "is_own",
    "load_dataset",
    "networks",
    "prepare",
    "small",
]
