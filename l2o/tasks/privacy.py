"""DP-SGD (Abadi et al. 2016) through tensorflow-privacy, and what it costs in privacy.

Each example's gradient is clipped, the clipped gradients are summed, Gaussian noise is added to
the sum, and the optimizer sees that divided by the batch size: any optimizer, and the warm-up's
SGD too.

tensorflow-privacy is imported where it is used: everything else works without it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache

import keras
import numpy as np
import tensorflow as tf

from l2o.extras import require
from l2o.problems.dataset import Batch, ProblemError
from l2o.tasks.convolution import vectorized_convolution
from l2o.tasks.gradient import Gradient, correct
from l2o.tasks.task import SEED, Task

ACCOUNTING = "RDP accountant; Poisson sampling assumed, batches are slices of a permutation"
DELTA = 1e-5


class PrivacyError(ProblemError):
    """A network that cannot be trained privately, or a Python that cannot do it."""


@dataclass(frozen=True)
class DPSGD:
    """The private gradient, and its price.

    Attributes:
        clip: Greatest l2 norm of an example's gradient.
        noise_multiplier: Standard deviation of the noise on the sum, in units of `clip`.
    """

    clip: float = 1.0
    noise_multiplier: float = 1.1

    def __call__(self, task: Task, parameters, carried: list, batch: Batch, key) -> Gradient:
        """The noised mean gradient of a batch, in place of `plain_gradient`.

        Args:
            task: A network for which `check_network` has nothing to say.
            parameters: [D].
            carried: What the network carries along; it is left as it is.
            batch: B examples.
            key: Seed and step, integers [2]: they fix the noise.
        """
        query = _query_class()(self.clip, self.clip * self.noise_multiplier, key)
        settings = query.initial_global_state()
        tensors = task.layout.unflatten(parameters)
        limit = query.derive_sample_params(settings)

        def one(example: Batch):
            """Loss, outputs and clipped gradient of a single example."""
            alone = tf.nest.map_structure(lambda x: x[None], example)
            with tf.GradientTape(watch_accessed_variables=False) as tape, vectorized_convolution():
                tape.watch(tensors)
                loss, _, outputs = task.outcome(tensors, carried, alone, training=True)
            gradient = tape.gradient(loss, tensors, unconnected_gradients="zero")
            gradient = task.layout.flatten(gradient)
            return loss, outputs[0], query.preprocess_record(limit, gradient)

        losses, outputs, clipped = tf.vectorized_map(one, batch)
        total, _, _ = query.get_noised_result(tf.reduce_sum(clipped, 0), settings)
        accuracy = tf.constant(np.nan, losses.dtype)
        if task.classifies:
            accuracy = tf.reduce_mean(tf.cast(correct(outputs, batch.labels), losses.dtype))
        size = tf.cast(tf.shape(losses)[0], total.dtype)
        return Gradient(tf.reduce_mean(losses), accuracy, total / size, carried)

    def epsilon(self, examples: int, batch_size: int, steps: int, delta: float = DELTA) -> float:
        """The privacy spent: (epsilon, `delta`)-differential privacy; see `ACCOUNTING`.

        Args:
            examples: In the training set.
            batch_size: Examples a step.
            steps: Warm-up included.
            delta: Of the guarantee.
        """
        return _epsilon(self.noise_multiplier, batch_size / examples, steps, delta)


def privacy_of(task: Task) -> DPSGD | None:
    """How a task is made private, if it is."""
    return DPSGD() if task.problem.private else None


@lru_cache
def _epsilon(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    step = dp_accounting.PoissonSampledDpEvent(
        rate, dp_accounting.GaussianDpEvent(noise_multiplier)
    )
    return float(RdpAccountant().compose(step, steps).get_epsilon(delta)) if steps else 0.0


def check_python() -> None:
    """Sees whether DP-SGD is possible here.

    Raises:
        PrivacyError: If tensorflow-privacy is not there; the message says what would help.
    """
    try:
        _query_class()
    except ImportError as error:
        raise PrivacyError(str(error)) from error


def check_network(model: keras.Model) -> None:
    """Sees whether a network can be trained with DP-SGD.

    Raises:
        PrivacyError: If it normalizes over the batch, or draws random numbers.
    """
    for layer in model._flatten_layers(include_self=False):
        if any(variable.name == SEED for variable in layer.variables):
            raise PrivacyError(
                "A network that draws random numbers, as dropout does, cannot be trained privately "
                f"here: all examples and steps would have the same. Received: layer '{layer.name}'"
            )
        if isinstance(layer, keras.layers.BatchNormalization):
            raise PrivacyError(
                "A network with batch normalization cannot be trained privately: the mean and "
                "variance of a batch mix its examples, so that no gradient belongs to one example "
                f"alone. Received: layer '{layer.name}'; GroupNormalization works"
            )


@lru_cache
def _query_class() -> type:
    require("privacy", "DP-SGD")
    # tensorflow_privacy's own imports fail under Keras 3; it offers this hook to leave them out.
    sys.skip_tf_privacy_import = True  # type: ignore[attr-defined]
    try:
        from tensorflow_privacy.privacy.dp_query.gaussian_query import GaussianSumQuery
    finally:
        del sys.skip_tf_privacy_import  # type: ignore[attr-defined]

    class SeededGaussianSumQuery(GaussianSumQuery):
        """`GaussianSumQuery` whose noise derives from a key, so that a fit can be repeated."""

        def __init__(self, l2_norm_clip: float, stddev: float, key):
            super().__init__(l2_norm_clip, stddev)
            self._key = key

        def get_noised_result(self, sample_state, global_state):
            noise = tf.random.stateless_normal(
                tf.shape(sample_state), self._key, stddev=global_state.stddev
            )
            return sample_state + noise, global_state, None

    return SeededGaussianSumQuery
