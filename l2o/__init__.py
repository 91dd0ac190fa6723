"""l2o: optimizer amalgamation for TensorFlow and Keras.

`model.compile(optimizer=l2o.AmalgamatedOptimizer.load(path))` trains a Keras model with a policy;
`policy = l2o.amalgamate(model_fn, data)` meta-trains one on a problem of your own.
"""

import os
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from l2o.runs.quiet import quiet

# The command, as `l2o` and as `python -m l2o`, asks for silence here: afterwards it is too late.
if os.path.basename("".join(sys.argv[:1])) in ("l2o", "-m"):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Imported, not loaded on demand: `import l2o` alone must make Keras know the optimizer's name, so
# that a saved model with it can be loaded. TensorFlow greets whoever imports it even at the level
# that asks for silence, which the commands set.
with quiet() if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3" else nullcontext():
    try:
        import keras  # noqa: F401  (which imports its backend)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Keras' backend is not installed ({error}): pip install 'l2o[train]' for TensorFlow, "
            "or set KERAS_BACKEND to jax or torch"
        ) from error
    from l2o.fit_horizon import FitHorizon
    from l2o.optimizer import AmalgamatedOptimizer
    from l2o.policies.checkpoint import Policy, PolicyError, load_policy, save_policy
    from l2o.policies.shipped import pretrained

if TYPE_CHECKING:
    from l2o import evaluation as evaluation
    from l2o import problems as problems
    from l2o.amalgamation.amalgamate import amalgamate as amalgamate
    from l2o.amalgamation.amalgamate import train as train
    from l2o.evaluation.evaluations import evaluate as evaluate
    from l2o.problems import Problem as Problem

__version__ = "0.1.0"

# Loaded on demand, each from its module: a trained policy needs none of it, nor TensorFlow.
_ON_DEMAND = {
    "Problem": "l2o.problems",
    "amalgamate": "l2o.amalgamation.amalgamate",
    "evaluate": "l2o.evaluation.evaluations",
    "train": "l2o.amalgamation.amalgamate",
}
_ROOMS_ON_DEMAND = ("evaluation", "problems")

# Without what is loaded on demand, so that `import *` works on every backend.
__all__ = [
    "AmalgamatedOptimizer",
    "FitHorizon",
    "Policy",
    "PolicyError",
    "load_policy",
    "pretrained",
    "save_policy",
]


def __dir__() -> list[str]:
    return [*__all__, *_ON_DEMAND, *_ROOMS_ON_DEMAND, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return getattr(import_module(_ON_DEMAND[name]), name)
    if name in _ROOMS_ON_DEMAND:
        return import_module(f"l2o.{name}")
    raise AttributeError(f"module 'l2o' has no attribute '{name}'")
