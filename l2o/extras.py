"""What each extra installs, as modules: `pip install 'l2o[train]'`."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_TRAIN = {
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "sklearn": "scikit-learn",
    "joblib": "joblib",
    "distributed": "distributed",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
}
# By extra, the modules that it brings, each with the package that it comes in.
MODULES = {
    "train": _TRAIN,
    "evaluate": _TRAIN | {"scipy": "scipy", "statsmodels": "statsmodels"},
    "privacy": {"tensorflow_privacy": "tensorflow-privacy", "dp_accounting": "dp-accounting"},
}


def require(extra: str, what: str) -> None:
    """Sees whether an extra is installed, before any work starts; imports nothing.

    Args:
        extra: "train", "evaluate" or "privacy".
        what: What needs it.

    Raises:
        ImportError: If a package is missing; the message names it, and the extra, in one line.
    """
    for module, package in MODULES[extra].items():
        if find_spec(module) is None:
            if extra == "privacy" and sys.version_info >= (3, 12):
                remedy = "it does not install on Python 3.12 and later; all else works here"
            else:
                remedy = f"pip install 'l2o[{extra}]'"
            raise ImportError(f"{what} needs {package}, which is not installed: {remedy}")
