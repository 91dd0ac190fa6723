"""What is optimized: datasets, networks, and the problems made of them. Light to import."""

from . import networks
from .catalog import PROBLEMS, get_problem
from .dataset import Dataset, DatasetUnavailable, Split
from .datasets import load_dataset
from .problem import Problem

__all__ = [
    "PROBLEMS",
    "Dataset",
    "DatasetUnavailable",
    "Problem",
    "Split",
    "get_problem",
    "load_dataset",
    "networks",
]
