"""Meta-trains an optimizer, or searches the teachers' learning rates; see --help."""

from start import run

if __name__ == "__main__":  # the processes of --jobs import this file
    run("l2o.commands.train")
