"""l2o: optimizer amalgamation for TensorFlow and Keras.

`model.compile(optimizer=l2o.AmalgamatedOptimizer.load(path))` trains a Keras model with a policy;
`policy = l2o.amalgamate(model_fn, data)` meta-trains one on a problem of your own.
"""

import os
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from l2o.runs.quiet import quiet

# The command, as `l2o` and as `python -m l2o`, asks for silence here: afterwards it is too late.
if os.path.basename("".join(sys.argv[:1])) in ("l2o", "-m"):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Imported, not loaded on demand: `import l2o` alone must make Keras know the optimizer's name, so
# that a saved model with it can be loaded. TensorFlow greets whoever imports it even at the level
# that asks for silence, which the commands set.
with quiet() if os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "3" else nullcontext():
    from l2o.optimizer import AmalgamatedOptimizer
    from l2o.policies.checkpoint import Policy, PolicyError, load_policy, save_policy
    from l2o.policies.shipped import pretrained

if TYPE_CHECKING:
    from l2o.amalgamation.amalgamate import amalgamate as amalgamate
    from l2o.problems import Problem as Problem

__version__ = "0.1.0"

# Without what is loaded on demand, so that `import *` works on every backend.
__all__ = [
    "AmalgamatedOptimizer",
    "Policy",
    "PolicyError",
    "load_policy",
    "pretrained",
    "save_policy",
]


def __getattr__(name: str) -> Any:
    """Loads on demand what meta-trains: a trained policy needs none of it, nor TensorFlow."""
    if name == "Problem":
        from l2o.problems import Problem

        return Problem
    if name == "amalgamate":
        from l2o.amalgamation.amalgamate import amalgamate

        return amalgamate
    raise AttributeError(f"module 'l2o' has no attribute '{name}'")
