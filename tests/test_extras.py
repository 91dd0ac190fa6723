"""What is not installed: it is named in one line, with the extra that brings it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from l2o.extras import MODULES

ROOT = Path(__file__).parents[1]
PROGRAM = """
import runpy, sys
{before}
sys.modules.update(dict.fromkeys({hidden!r}))  # as if they were not installed
sys.argv[1:] = {arguments!r}
{program}
"""


def python(hidden, program: str, arguments=(), before: str = ""):
    """Runs a program that finds none of the hidden modules."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(**locals())], cwd=ROOT, capture_output=True,
        text=True, env={"PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


@pytest.mark.parametrize(
    "command, hidden, message",
    [
        ("train.py", "tensorflow_datasets",
         "l2o train needs tensorflow-datasets, which is not installed: pip install 'l2o[train]'"),
        ("evaluate.py", "statsmodels",
         "l2o evaluate needs statsmodels, which is not installed: pip install 'l2o[evaluate]'"),
        ("evaluate.py --problem mnist_dp", "tensorflow_privacy",
         "DP-SGD needs tensorflow-privacy, which is not installed: pip install 'l2o[privacy]'"),
    ],
)  # fmt: skip
def test_a_command_says_what_it_lacks(command, hidden, message):
    if "mnist_dp" in command and sys.version_info >= (3, 12):
        message = message.partition(": ")[0]
    file, *arguments = command.split()
    program = f"runpy.run_path({file!r}, run_name='__main__')"
    done = python([hidden], program, arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "program, what",
    [
        ("l2o.amalgamate", "l2o.amalgamation"),
        ("import l2o.tasks.load", "l2o.tasks"),
        ("l2o.evaluation", "l2o.evaluation"),
        ("import l2o.reports", "l2o.reports"),
        ("from l2o.problems import load_dataset as load; load('mnist')",
         "l2o.problems.load_dataset"),
    ],
)  # fmt: skip
def test_the_library_says_what_it_lacks(program, what):
    # Here Keras has no other backend, so it is imported first.
    done = python(["tensorflow"], program, before="import l2o")
    extra = "evaluate" if what == "l2o.reports" else "train"
    assert done.stderr.endswith(
        f"ImportError: {what} needs tensorflow, which is not installed: "
        f"pip install 'l2o[{extra}]'\n"
    )


def test_a_policy_is_loaded_with_the_core_alone():
    hidden = {module for modules in MODULES.values() for module in modules} - {"tensorflow"}
    program = """
import l2o
from l2o import problems, rules
print(l2o.AmalgamatedOptimizer.load("choice-large").averaging)
print(problems.get_problem("mnist_cnn").name, rules.get_teacher("adam").name)
"""
    done = python(sorted(hidden), program)
    assert done.stdout.split() == ["0.8", "mnist_cnn", "adam"], done.stderr


def test_extras_are_those_of_the_package():
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = described["project"]["optional-dependencies"]
    assert set(MODULES) == {"train", "evaluate", "privacy"}
    for extra, modules in MODULES.items():
        own = {line.split("[")[0].split(">")[0].split("=")[0] for line in extras[extra]}
        behind = {line.split(">")[0] for line in extras["train"] if extra == "evaluate"}
        assert (own | behind) - {"l2o", "importlib_resources"} == set(modules.values())
    assert extras["all"] == ["l2o[evaluate,privacy]"]
