"""A layer of the small networks. Loads Keras."""

from __future__ import annotations

from keras import Layer


class Places(Layer):
    """Adds a learned vector at each place of sequences [B, T, width]."""

    def build(self, input_shape):
        self.places = self.add_weight(shape=input_shape[1:], initializer="uniform", name="places")

    def call(self, inputs):
        return inputs + self.places
