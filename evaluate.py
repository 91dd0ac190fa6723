"""Compares optimizers on the paper's problems: `l2o evaluate`; see --help."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for a quiet start

from l2o.commands import run

if __name__ == "__main__":
    run("evaluate")
