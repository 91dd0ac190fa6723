"""l2o: optimizer amalgamation for TensorFlow and Keras.

`model.compile(optimizer=l2o.AmalgamatedOptimizer.load(path))` trains a Keras model with a policy.
"""

# Imported, not loaded on demand: `import l2o` alone must make Keras know the optimizer's name, so
# that a saved model with it can be loaded.
from l2o.checkpoint import Policy, PolicyError, load_policy, save_policy
from l2o.optimizer import AmalgamatedOptimizer

__version__ = "0.1.0"

__all__ = ["AmalgamatedOptimizer", "Policy", "PolicyError", "load_policy", "save_policy"]
