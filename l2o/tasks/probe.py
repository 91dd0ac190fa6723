"""A call of a user's model, and what happens within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from l2o.tasks.task import as_inputs, mode

CARRIED = (
    "only non-trainable weights are carried from step to step: replace it; a layer of your own "
    "keeps state in add_weight(trainable=False), and draws from a keras.random.SeedGenerator that "
    "is an attribute of it"
)


class Event(NamedTuple):
    """What passed between two layers.

    Attributes:
        layer: Whence it came.
        values: Nested tensors.
        over: Whether they are the outputs of the layer; else they are inputs of one within it.
    """

    layer: keras.layers.Layer
    values: Any
    over: bool


class Probe(keras.StatelessScope):
    """Within, a model is called from the values of its variables, which stay as they are.

    Args:
        model: The model.

    Attributes:
        inside: The model and the layers that are being called; where one failed, it is the last.
        events: In turn.
        writes: Each layer that wrote to a variable of Keras', with that variable.
    """

    def __init__(self, model: keras.Model):
        super().__init__(collect_losses=True)
        self.inside: list[keras.layers.Layer] = [model]
        self.events: list[Event] = []
        self.writes: list[tuple[keras.layers.Layer, keras.Variable]] = []

    def call(self, inputs: tf.Tensor, training: bool) -> Any:
        """The model's outputs."""
        (model,) = self.inside
        with self:
            outputs = model(as_inputs(inputs), **mode(model, training))
        self.events.append(Event(model, outputs, over=True))
        return outputs

    def __enter__(self):
        layers = self.inside[0]._flatten_layers(include_self=False)
        self._layers = [layer for layer in layers if "call" not in vars(layer)]
        for layer in self._layers:
            vars(layer)["call"] = self._recorded(layer)
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for layer in self._layers:
            del vars(layer)["call"]

    def add_update(self, update):
        self.writes.append((self.inside[-1], update[0]))
        super().add_update(update)

    def _recorded(self, layer: keras.layers.Layer) -> Callable:
        def call(*args, **kwargs):
            self.events.append(Event(self.inside[-1], (args, kwargs), over=False))
            self.inside.append(layer)
            outputs = type(layer).call(layer, *args, **kwargs)
            self.events.append(Event(self.inside.pop(), outputs, over=True))
            return outputs

        return call


def named(layer: keras.layers.Layer) -> str:
    """A layer or model as messages call it."""
    return f"{'Model' if isinstance(layer, keras.Model) else 'Layer'} '{layer.name}'"
