"""What differs between Keras' backends: variables, what they hold, and where they lie."""

from __future__ import annotations

from contextlib import nullcontext

import keras
from keras import ops


def replicated(rank: int):
    """The layout of state under one of Keras' distributions: whole on every device."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    return keras.distribution.TensorLayout([None] * rank, distribution.device_mesh)


def native(variable):
    """The backend's own variable in a Keras variable; anything else as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def tensor_of(variable):
    """What a variable holds, a dense tensor; on several replicas, this one's."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.convert_to_tensor(native(variable))
    tensor = ops.convert_to_tensor(native(variable))
    if keras.backend.backend() == "torch" and tensor.is_sparse:
        return tensor.to_dense()  # rows that are named twice are summed
    return tensor


def tensors_of(variables):
    """What each of a nest of variables holds."""
    return keras.tree.map_structure(tensor_of, variables)


def beside(optimizer: keras.optimizers.Optimizer, variable):
    """Where an optimizer's new variables lie on the device of `variable`."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    return optimizer._distribution_strategy.extended.colocate_vars_with(native(variable))


def no_grad():
    """Where torch records no gradients."""
    if keras.backend.backend() != "torch":
        return nullcontext()
    import torch

    return torch.no_grad()


def runs_eagerly() -> bool:
    """Whether values can be looked at here."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.executing_eagerly()
    return keras.backend.backend() == "torch"
