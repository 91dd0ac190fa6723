"""What is optimized: datasets, networks, and the problems made of them. Light to import."""

from problems.catalog import PROBLEMS, get_problem
from problems.dataset import Dataset, DatasetUnavailable, Split
from problems.datasets import load_dataset
from problems.problem import Problem

__all__ = [
    "PROBLEMS",
    "Dataset",
    "DatasetUnavailable",
    "Problem",
    "Split",
    "get_problem",
    "load_dataset",
]
