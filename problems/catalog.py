"""Problems by name: of the paper's Table 1 and Appendix E.2, of today, and users' own."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from . import networks
from .dataset import ProblemError
from .families import FAMILIES, HELD_OUT
from .prepare import few, reconstruction
from .problem import Problem

OWN = "package.module:function"  # the form of a name of a user's own problem

_wider = partial(networks.cnn, filters=(32, 64))
_resnet28 = partial(networks.resnet, depth=28)
_resnet52 = partial(networks.resnet, depth=52)

# Fits of these take about a minute on one core.
MODERN = (
    Problem(networks.text_transformer, "tiny_shakespeare", batch_size=64, epochs=5,
            name="shakespeare_transformer"),
    Problem(networks.text_gru, "tiny_shakespeare", batch_size=64, epochs=4, name="shakespeare_gru"),
    Problem(networks.flipped_resnet, "cifar10", epochs=4, name="cifar10_resnet"),
    Problem(networks.vit, "fashion_mnist", epochs=2, name="fmnist_vit"),
    Problem(networks.autoencoder, "fashion_mnist", loss="mse", prepare=reconstruction, epochs=5,
            name="fmnist_autoencoder"),
    Problem(networks.table_mlp, "diabetes", loss="mse", batch_size=32, epochs=100,
            name="diabetes_mlp"),
    Problem(networks.finetuned_cnn, "mnist", batch_size=64, prepare=few(5_000), epochs=10,
            name="mnist_finetune"),
)  # fmt: skip

PAPER = (
    Problem(networks.cnn, "mnist", name="mnist_cnn"),
    Problem(networks.mlp, "mnist", name="mnist_mlp"),
    Problem(_wider, "mnist", name="mnist_wider"),
    Problem(networks.deeper, "mnist", name="mnist_deeper"),
    Problem(networks.deeper_strided, "mnist", name="mnist_deeper_strided"),
    Problem(networks.cnn, "fashion_mnist", name="fmnist_cnn"),
    Problem(networks.cnn, "svhn_cropped", name="svhn_cnn"),
    Problem(_wider, "cifar10", name="cifar10_wider"),
    Problem(_resnet28, "cifar10", name="cifar10_resnet28"),
    Problem(networks.cnn, "mnist", batch_size=32, name="mnist_small_batch"),
    Problem(networks.cnn, "mnist", private=True, name="mnist_dp"),
    Problem(networks.cnn, "kmnist", name="kmnist_cnn"),
    Problem(networks.cnn, "kmnist", private=True, name="kmnist_dp"),
    Problem(_resnet52, "cifar10", name="cifar10_resnet52"),
    Problem(_resnet52, "cifar100", name="cifar100_resnet52"),
    Problem(networks.cnn, "digits", name="digits_cnn"),
)

_SUITES = {"paper": PAPER, "modern": MODERN, "families": FAMILIES, "held_out": HELD_OUT}
PROBLEMS: dict[str, Problem] = {p.name: p for suite in _SUITES.values() for p in suite}
SUITES = {name: tuple(p.name for p in suite) for name, suite in _SUITES.items()}
# As a sentence has it: the others are dozens.
ALLOWED = (
    f"{', '.join((*SUITES['paper'], *SUITES['modern']))}; or of "
    f"`l2o evaluate --list`; or {OWN} for your own"
)


def expanded(names: Iterable[str]) -> list[str]:
    """Names, and in place of those of suites the problems in them."""
    return [problem for name in names for problem in SUITES.get(name, (name,))]


def is_own(name: str) -> bool:
    """Whether a name is in the form of a user's own problem: `package.module:function`."""
    module, colon, function = name.partition(":")
    return bool(colon and module and function.isidentifier())


def get_problem(name: str) -> Problem:
    """The problem of a name.

    Args:
        name: A name in `PROBLEMS`, or `package.module:function`, a `Problem`, or a function without
            arguments that returns one. The module is looked for in the current directory first.

    Raises:
        ProblemError: There is none; the message lists the names there are, or says what is wrong
            with the function.
    """
    if is_own(name):
        return replace(_own(name), name=name)
    try:
        return PROBLEMS[name]
    except KeyError:
        raise ProblemError(
            f"No problem has that name; there are {ALLOWED}. Received: {name!r}"
        ) from None


def _own(name: str) -> Problem:
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
            raise ProblemError(
                f"{name}: there is no module {module} here or on Python's path"
            ) from error
        raise ProblemError(f"{name}: importing {module} failed: {_line(error)}") from error
    make = getattr(found, function, None)
    if isinstance(make, Problem):
        return make
    if not callable(make):
        place = getattr(found, "__file__", None) or module
        raise ProblemError(f"{name}: {place} has no function {function}")
    try:
        with contextlib.chdir("."):  # whatever the function does about it
            problem = make()
    except (Exception, SystemExit) as error:
        raise ProblemError(f"{name}: {function} failed: {_line(error)}") from error
    if not isinstance(problem, Problem):
        raise ProblemError(
            f"{name}: {function} must return an l2o.Problem. Received: a {type(problem).__name__}"
        )
    return problem


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
