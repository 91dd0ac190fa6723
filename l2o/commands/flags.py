"""Flags that several commands have, and what goes with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import keras

from l2o.commands.terminal import Parser, known, unknown
from l2o.errors import UserError
from l2o.problems import PROBLEMS, is_own
from l2o.problems.catalog import OWN

ALL = "all"  # of the problems


def problem_name(text: str) -> str:
    """An argument that names a problem; one of the user's own is not looked for yet."""
    if text not in PROBLEMS and not is_own(text):
        raise argparse.ArgumentTypeError(unknown(text, PROBLEMS, f"; or {OWN} for your own"))
    return text


def is_private(name: str) -> bool:
    """Whether a problem is trained with DP-SGD, so far as its name says."""
    return name in PROBLEMS and PROBLEMS[name].private


def add_problem_flag(group: argparse._ArgumentGroup, several: bool = False) -> None:
    """--problem; `several` may be trained on together, and are a list then."""
    more = {"nargs": "+", "default": ["mnist_cnn"]} if several else {"default": "mnist_cnn"}
    group.add_argument("--problem", type=problem_name, metavar="NAME", **more,
                       help=f"default mnist_cnn. One{' or several' * several} of "
                       f"{', '.join(PROBLEMS)}; or your own as {OWN}")  # fmt: skip


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


def check_trainable(names: Sequence[str], options: argparse.Namespace) -> None:
    """Whether problems are trained on without privacy, and the data flags mean them.

    Raises:
        UserError: If not.
    """
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
