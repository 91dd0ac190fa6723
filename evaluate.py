"""Compares optimizers on the paper's problems, or reports results; see --help."""

from start import run

if __name__ == "__main__":
    run("l2o.commands.evaluate")
