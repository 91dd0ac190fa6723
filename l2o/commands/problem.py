"""`--problem`: a problem by name, or one of the user's own as module:function."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable

import keras

from l2o.commands.terminal import Parser, known
from l2o.errors import UserError
from l2o.problems import PROBLEMS, Dataset, ProblemError, is_own
from l2o.problems.catalog import OWN
from l2o.runs.quiet import quiet
from l2o.tasks.load import load_task
from l2o.tasks.privacy import check_python
from l2o.tasks.task import Task

ALL = "all"  # of the problems


def problem_name(text: str) -> str:
    """An argument that names a problem; one of the user's own is not looked for yet."""
    if text not in PROBLEMS and not is_own(text):
        allowed = f"{', '.join(PROBLEMS)}; or {OWN} for your own"
        raise argparse.ArgumentTypeError(f"unknown name '{text}'; allowed: {allowed}")
    return text


def is_private(name: str) -> bool:
    """Whether a problem is trained with DP-SGD, so far as its name says."""
    return name in PROBLEMS and PROBLEMS[name].private


def add_problem_flag(group: argparse._ArgumentGroup) -> None:
    """--problem, where it is one."""
    group.add_argument("--problem", type=problem_name, default="mnist_cnn", metavar="NAME",
                       help=f"default mnist_cnn. One of {', '.join(PROBLEMS)}; or your "
                       f"own as {OWN}")  # fmt: skip


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


def check_trainable(options: argparse.Namespace) -> None:
    """Whether --problem is one that is trained on without privacy, and the data flags mean it.

    Raises:
        UserError: If not.
    """
    check_data_flags([options.problem], options)
    if is_private(options.problem):
        raise UserError(
            f"--problem: {options.problem} is trained with DP-SGD, which is for l2o evaluate; "
            "name the same problem without it"
        )


def check_data_flags(names: list[str], options: argparse.Namespace) -> None:
    """Says where flags mean nothing.

    Raises:
        UserError: If all problems bring their own data, and a flag says where to find some.
    """
    given = [flag for flag, value in (("--data", options.data), ("--data-dir", options.data_dir))
             if value is not None]  # fmt: skip
    if given and all(map(is_own, names)):
        raise UserError(f"{' and '.join(given)}: {names[0]} brings its own data")


def named_task(
    name: str,
    data: str | None,
    data_dir: str | None,
    loaded: dict[str, Dataset] | None = None,
    report: Callable[[str], None] = print,
    **needs: bool,
) -> Task:
    """`l2o.tasks.load.load_task` of what flags say, in float32.

    Raises:
        UserError: If it cannot be had; the message says why in one line.
    """
    _float32(report)
    data = data or "auto"
    try:
        if is_private(name):
            with quiet():  # imports what writes to stderr
                check_python()
        with contextlib.chdir("."):  # whatever the user's module does about it
            return load_task(name, data, data_dir, loaded=loaded, report=report, **needs)
    except ProblemError as error:
        where = f"--problem {name}: " if is_own(name) else ""
        raise UserError(where + str(error).removeprefix(f"{name}: ")) from error


def _float32(report: Callable[[str], None]) -> None:
    """Commands compute in float32, whatever Keras' configuration file says."""
    floatx = keras.config.floatx()
    if floatx != "float32":
        report(f"Note: in float32, not in the {floatx} of Keras' configuration")
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")
