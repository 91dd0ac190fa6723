"""l2o: optimizer amalgamation for TensorFlow and Keras.

`model.compile(optimizer=l2o.AmalgamatedOptimizer.load(path))` trains a Keras model with a policy;
`policy = l2o.amalgamate(model_fn, data)` meta-trains one on a problem of your own.
"""

from typing import TYPE_CHECKING, Any

# Imported, not loaded on demand: `import l2o` alone must make Keras know the optimizer's name, so
# that a saved model with it can be loaded.
from l2o.checkpoint import Policy, PolicyError, load_policy, save_policy
from l2o.optimizer import AmalgamatedOptimizer
from l2o.shipped import pretrained

if TYPE_CHECKING:
    from l2o.amalgamation.own import OwnProblem as OwnProblem
    from l2o.amalgamation.own import amalgamate as amalgamate

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
    if name in ("OwnProblem", "amalgamate"):
        from l2o.amalgamation import own

        return getattr(own, name)
    raise AttributeError(f"module 'l2o' has no attribute '{name}'")
