"""Meta-trains an optimizer: `l2o train`; see --help."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for a quiet start

from l2o.commands import run

if __name__ == "__main__":  # the processes of --jobs import this file
    run("train")
