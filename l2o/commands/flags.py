"""Flags that several commands have, and what goes with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import keras

from l2o.commands.terminal import Parser, known, unknown
from l2o.errors import UserError
from l2o.problems import PROBLEMS, is_own
from l2o.problems.catalog import ALLOWED, OWN, SUITES, expanded

ALL = "all"  # of the problems


def problem_name(text: str) -> str:
    """An argument that names a problem; one of the user's own is not looked for yet."""
    if text not in PROBLEMS and not is_own(text):
        raise argparse.ArgumentTypeError(unknown(text, PROBLEMS, ALLOWED))
    return text


def problem_or_suite(text: str) -> str:
    """An argument that names a problem, or a suite of them."""
    return text if text in SUITES else problem_name(text)


def is_private(name: str) -> bool:
    """Whether a problem is trained with DP-SGD, so far as its name says."""
    return name in PROBLEMS and PROBLEMS[name].private


def add_problem_flag(group: argparse._ArgumentGroup) -> None:
    """--problem, where it is one."""
    group.add_argument("--problem", type=problem_name, default="mnist_cnn", metavar="NAME",
                       help=f"default mnist_cnn. One of {ALLOWED}")  # fmt: skip


def add_problems_flag(group: argparse._ArgumentGroup) -> None:
    """--problem, where it may be several that are trained on together."""
    group.add_argument("--problem", type=problem_or_suite, nargs="+", metavar="NAME",
                       help="one, or several together, or a suite; default mnist_cnn. Names are in "
                       f"`l2o evaluate --list`; or {OWN} for your own")  # fmt: skip


def add_data_flags(parser: Parser) -> None:
    """--data and --data-dir."""
    g = parser.add_argument_group("data")
    g.add_argument(
        "--data",
        type=known(("auto", "tfds", "digits")),
        metavar="HOW",
        help="auto: the embedded digits stand in where the dataset cannot be had, and "
        "that is said; tfds: that is an error; digits: use them. Default auto",
    )
    g.add_argument("--data-dir", metavar="DIR",
                   help="prepared TFDS data or raw official files")  # fmt: skip


def add_scheduler_flag(group: argparse._ArgumentGroup) -> None:
    """--scheduler, beside --jobs."""
    group.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="instead, fit on the workers of the `dask scheduler` at this address, "
        "tcp://10.0.0.1:8786 say; docs/reliability.md has how they are started",
    )


def check_scheduler(options: argparse.Namespace) -> None:
    """Whether it is said once who fits.

    Raises:
        UserError: If not.
    """
    if options.scheduler and options.jobs:
        raise UserError("--jobs is of this machine, so --scheduler cannot be given too")


def check_trainable(names: Sequence[str], options: argparse.Namespace) -> None:
    """Whether problems are trained on without privacy, and the data flags mean them.

    Raises:
        UserError: If not.
    """
    names = expanded(names)
    check_data_flags(names, options)
    for name in filter(is_private, names):
        raise UserError(
            f"--problem: {name} is trained with DP-SGD, which is for l2o evaluate; name the same "
            "problem without it"
        )


def check_data_flags(names: Sequence[str], options: argparse.Namespace) -> None:
    """Says where flags mean nothing.

    Raises:
        UserError: If all problems bring their own data, and a flag says where to find some.
    """
    given = [flag for flag, value in (("--data", options.data), ("--data-dir", options.data_dir))
             if value is not None]  # fmt: skip
    if given and all(map(is_own, names)):
        raise UserError(f"{' and '.join(given)}: {names[0]} brings its own data")


def in_float32() -> None:
    """Commands compute in float32, whatever Keras' configuration file says."""
    floatx = keras.config.floatx()
    if floatx != "float32":
        print(f"Note: in float32, not in the {floatx} of Keras' configuration")
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
