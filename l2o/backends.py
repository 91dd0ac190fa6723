"""What differs between Keras' backends: variables, what they hold, and where they lie."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import keras
import numpy as np
from keras import ops

BACKENDS = ("tensorflow", "jax", "torch")


def check_backend() -> None:
    """Raises ValueError where the optimizer does not run."""
    if keras.backend.backend() not in BACKENDS:
        raise ValueError(
            f"AmalgamatedOptimizer runs on Keras' backends {', '.join(BACKENDS)}. "
            f"Received: {keras.backend.backend()}"
        )


def replicated(rank: int):
    """The layout of state under one of Keras' distributions: whole on every device."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    return keras.distribution.TensorLayout([None] * rank, distribution.device_mesh)


def native(variable):
    """The backend's own variable in a Keras variable; anything else as it is."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def known_to_keras(variable):
    """A variable as Keras' hooks get it: TensorFlow's own has the layer in its name."""
    return native(variable) if keras.backend.backend() == "tensorflow" else variable


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


def summed_over_replicas(optimizer, gradients: Sequence, variables: Sequence) -> list:
    """Gradients as they are, or summed where TensorFlow has several replicas."""
    if keras.backend.backend() != "tensorflow":
        return list(gradients)
    pairs = zip(gradients, variables, strict=True)
    return [gradient for gradient, _ in optimizer._all_reduce_sum_gradients(pairs)]


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


def replaced(values, i, value):
    """An array whose entry i is another value; torch writes into the array itself."""
    if keras.backend.backend() == "torch":
        values[i] = value
        return values
    start = (i,) + (0,) * (values.ndim - 1)
    return ops.slice_update(values, start, ops.expand_dims(value, 0))


def outside_graphs():
    """Where TensorFlow runs at once, even while it traces a function."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def compiled(function: Callable) -> Callable:
    """The function, as fast as the backend has it."""
    if keras.backend.backend() == "tensorflow" and sys.platform != "darwin":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def in_one_place(variables: Sequence) -> bool:
    """Whether a compiled function can assign to all of these: TensorFlow's, on one device."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    if tf.distribute.has_strategy():
        return False
    return len({native(v).device for v in variables}) == 1


Spec = tuple[tuple[int, ...], str]  # shape and dtype of a variable


def spec(variable) -> Spec:
    """A variable's shape and dtype."""
    return tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype)


def handle(variable):
    """TensorFlow's handle of a variable: a compiled function may be given any.

    Given the variable itself, it would work as long as the first one lives.
    """
    return native(variable).handle


def read(handle, spec: Spec):
    """What the variable behind a handle holds."""
    import tensorflow as tf

    value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec[1])
    value.set_shape(spec[0])
    return value


def assign(handle, value) -> None:
    """Sets the variable behind a handle."""
    import tensorflow as tf

    tf.raw_ops.AssignVariableOp(resource=handle, value=value)


def write(optimizer, variables: Sequence, steps: Sequence, slots: list, values: list) -> None:
    """Subtracts steps from a model's variables and sets an optimizer's, on every replica."""
    if keras.backend.backend() != "tensorflow":
        for variable, step in zip(variables, steps, strict=True):
            optimizer.assign_sub(variable, ops.cast(step, variable.dtype))
        for slot, value in zip(slots, values, strict=True):
            optimizer.assign(slot, value)
        return
    import tensorflow as tf

    def everywhere(distribution, variables, steps, slots, values):
        update = distribution.extended.update
        for variable, step in zip(variables, steps, strict=True):
            update(variable, optimizer.assign_sub, args=(step,), group=False)
        for slot, value in zip(slots, values, strict=True):
            update(slot, optimizer.assign, args=(value,), group=False)

    variables, slots = ([native(v) for v in each] for each in (variables, slots))
    tf.__internal__.distribute.interim.maybe_merge_call(
        everywhere, optimizer._distribution_strategy, variables, steps, slots, values
    )


def float_type() -> str:
    """The dtype of an optimizer's state and steps: float32 in mixed precision too."""
    return "float64" if keras.config.floatx() == "float64" else "float32"


def path_of(variable) -> str:
    """The path of a Keras variable, or the name of a backend's own."""
    return getattr(variable, "path", variable.name)


def has_shape(tensor) -> bool:
    """Whether the shape is known; TensorFlow's tensors and variables need not have one."""
    try:
        return None not in tuple(tensor.shape)
    except ValueError:  # of unknown rank
        return False


def fitted(gradient, variable):
    """A gradient as a tensor of the state's dtype and of the variable's shape.

    Raises:
        ValueError: If it has another.
    """
    gradient = ops.cast(tensor_of(gradient), float_type())
    if not has_shape(gradient):
        return ops.reshape(gradient, variable.shape)
    shape = tuple(gradient.shape)
    if shape == tuple(variable.shape):
        return gradient
    try:
        if np.broadcast_shapes(shape, variable.shape) == tuple(variable.shape):
            return ops.broadcast_to(gradient, variable.shape)
    except ValueError:
        pass
    raise ValueError(
        f"The gradient of {path_of(variable)} must have its shape {tuple(variable.shape)}. "
        f"Received: {shape}"
    )
