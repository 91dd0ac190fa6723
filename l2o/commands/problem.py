"""`--problem`: a problem of the paper's by name, or one of the user's own as module:function."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import keras

from l2o import problems
from l2o.commands.terminal import Parser, known
from l2o.errors import UserError
from l2o.runs.quiet import quiet

ALL = "all"  # of the problems
OWN = "package.module:function"


def problem_name(text: str) -> str:
    """An argument that names a problem; one of the user's own is not looked for yet."""
    module, colon, function = text.partition(":")
    if text not in problems.PROBLEMS and not (colon and module and function.isidentifier()):
        allowed = f"{', '.join(problems.PROBLEMS)}; or {OWN} for your own"
        raise argparse.ArgumentTypeError(f"unknown name '{text}'; allowed: {allowed}")
    return text


def is_own(name: str) -> bool:
    """Whether a problem's name means one of the user's own."""
    return ":" in name


def is_private(name: str) -> bool:
    """Whether a problem is trained with DP-SGD."""
    return not is_own(name) and problems.get_problem(name).private


def add_problem_flag(group: argparse._ArgumentGroup) -> None:
    """--problem, where it is one."""
    group.add_argument("--problem", type=problem_name, default="mnist_cnn", metavar="NAME",
                       help=f"default mnist_cnn. One of {', '.join(problems.PROBLEMS)}; or your "
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


def load_problem(
    name: str,
    data: str | None,
    data_dir: str | None,
    loaded: dict | None = None,
    report: Callable[[str], None] = print,
    **needs: bool,
) -> tuple:
    """A problem and its data, as `l2o.tasks.task.Task` takes them.

    Args:
        name: As `problem_name` lets it through.
        data: "auto", by default, "tfds" or "digits".
        data_dir: Where the data is, if not where TFDS looks by itself.
        loaded: Datasets by name, which are not loaded again; this one is added.
        report: Told what data it is, and what may not be meant.
        **needs: See `own.prepare`.

    Raises:
        UserError: If it cannot be had; the message says why in one line.
    """
    _float32(report)
    if is_own(name):
        with contextlib.chdir("."):  # whatever the user's module does about it
            problem, dataset = _own(name, report=report, **needs)
        report(f"Data: {dataset.description}")
        return problem, dataset
    problem, loaded = problems.get_problem(name), {} if loaded is None else loaded
    if problem.private:
        _check_private()
    if problem.dataset not in loaded:
        try:
            dataset = problems.load_dataset(problem.dataset, data or "auto", data_dir, report)
        except problems.DatasetUnavailable as error:
            raise UserError(str(error)) from error
        report(f"Data: {dataset.description}")
        loaded[problem.dataset] = dataset
    try:
        problem.check(loaded[problem.dataset])
    except problems.DatasetUnavailable as error:
        raise UserError(str(error)) from error
    return problem, loaded[problem.dataset]


def _check_private() -> None:
    from l2o.tasks.privacy import PrivacyError, check_python

    try:
        with quiet():
            check_python()
    except PrivacyError as error:
        raise UserError(str(error)) from error


def _float32(report: Callable[[str], None]) -> None:
    """Commands compute in float32, whatever Keras' configuration file says."""
    floatx = keras.config.floatx()
    if floatx != "float32":
        report(f"Note: in float32, not in the {floatx} of Keras' configuration")
        keras.config.set_floatx("float32")
        keras.config.set_dtype_policy("float32")


def _own(name: str, **needs: Any) -> tuple:
    from l2o.tasks.examples import ProblemError
    from l2o.tasks.own import OwnProblem, prepare

    module, _, function = name.partition(":")
    if sys.path[:1] != [os.getcwd()]:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(
            f"{error.name}."
        )
        if missing:
            raise UserError(
                f"--problem {name}: there is no module {module} here or on Python's path"
            ) from error
        raise UserError(f"--problem {name}: importing {module} failed: {_line(error)}") from error
    make = getattr(found, function, None)
    if not callable(make):
        place = getattr(found, "__file__", None) or module
        raise UserError(f"--problem {name}: {place} has no function {function}")
    try:
        own = make()
    except (Exception, SystemExit) as error:
        raise UserError(f"--problem {name}: {function} failed: {_line(error)}") from error
    if not isinstance(own, OwnProblem):
        raise UserError(
            f"--problem {name}: {function} must return an l2o.OwnProblem. "
            f"Received: a {type(own).__name__}"
        )
    try:
        return prepare(own, name, **needs)
    except ProblemError as error:
        raise UserError(f"--problem {name}: {error}") from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
