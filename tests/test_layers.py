"""The rooms of the package: imports point only downwards."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import l2o
from l2o import problems

_PACKAGE = Path(l2o.__file__).parent
_PROBLEMS = Path(problems.__file__).parent  # `l2o.problems`, at the top of the repository
_ROOMS = ("rules", "problems", "tasks", "runs", "policies", "amalgamation", "evaluation",
          "reports", "commands")  # fmt: skip
# The Keras optimizer and its parts, beside the rooms: what each may see of these.
_TO_POLICIES = _ROOMS.index("policies")
_EVERYBODYS = ("l2o.errors", "l2o.extras")
_BESIDE = {"errors": -1, "extras": -1, "backends": -1, "packing": 0, "step": 0}
_BESIDE |= dict.fromkeys(("saved", "slots", "optimizer", "fit_horizon"), _TO_POLICIES)
_FILES = [
    p.relative_to(_PACKAGE) for p in sorted(_PACKAGE.rglob("*.py")) if p.parent != _PACKAGE
] + [Path(f"{name}.py") for name in _BESIDE]


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports, wherever in it: "l2o.rules.base"."""
    names = set()
    for node in ast.walk(ast.parse((_PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative path"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "l2o"}


def test_every_file_has_a_room():
    there = {p.name.removesuffix(".py") for p in _PACKAGE.iterdir()}
    there = {name for name in there if not name.startswith("__")}
    assert there - {"py.typed"} == {*_ROOMS, *_BESIDE} - {"problems"}


def test_the_wheel_has_every_room():
    package = tomllib.loads((_PROBLEMS.parent / "pyproject.toml").read_text())
    setuptools = package["tool"]["setuptools"]
    rooms = {f"l2o.{p.parent.name}" for p in _PACKAGE.glob("*/__init__.py")}
    assert set(setuptools["packages"]) == {"l2o", "l2o.problems", *rooms}
    assert setuptools["package-dir"] == {"l2o.problems": _PROBLEMS.name}


@pytest.mark.parametrize("path", _FILES, ids=str)
def test_imports_point_downwards(path):
    room = path.parts[0].removesuffix(".py")
    floor = _BESIDE[room] if room in _BESIDE else _ROOMS.index(room)
    for name in imported(path):
        if name == "l2o" or name.startswith(_EVERYBODYS):  # as the version is
            continue
        part = name.split(".")[1] if "." in name else ""
        if part in _ROOMS:
            assert _ROOMS.index(part) <= floor, f"{path} imports {name}"
        elif part in _BESIDE:
            assert room in _BESIDE or room == "commands", f"{path} imports {name}"
        else:  # from the package's face
            assert room == "commands", f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted(_PROBLEMS.glob("*.py")), ids=lambda path: path.name)
def test_problems_know_nothing_of_the_library(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            module = node.module or ""
            assert module == "l2o.extras" or not module.startswith("l2o")
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("l2o") for alias in node.names)


def test_the_package_alone_loads_neither_data_nor_what_trains():
    """A dataset's, a plotting or a statistics library that Keras has loaded is not ours."""
    program = """
import sys, keras
there = set(sys.modules)
import l2o
print(*sorted({name.split(".")[0] for name in set(sys.modules) - there}))
print(*sorted(name for name in sys.modules if name.startswith("l2o.") and name.count(".") == 1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    libraries, rooms = done.stdout.splitlines()
    heavy = {"joblib", "matplotlib", "scipy", "sklearn", "statsmodels"}
    assert not heavy & {*libraries.split()}
    unused = {"l2o.problems", "l2o.tasks", "l2o.amalgamation", "l2o.evaluation"}
    assert not unused & {*rooms.split()}
