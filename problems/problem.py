"""What is optimized: a network on data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .dataset import Dataset

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, eq=False)  # arrays do not compare
class Problem:
    """A network, the data that it is trained on, and the loss.

    Attributes:
        model_fn: Makes the Keras model, with fresh weights at every call: `model_fn()`, or, where
            `data` is a name, `model_fn(shape, classes)` of the data in hand, which need not be the
            data that were asked for.
        data: Arrays (x, y), or (x, y, weight of each example); a finite, batched `tf.data.Dataset`
            of such; or the name of a TFDS dataset of labelled images, or "digits".
        validation: As `data`; by default the last min(5,000, a sixth) of it, and () for none. Data
            by name bring their own.
        test: Likewise; none by default.
        loss: The name of a Keras loss, a `keras.losses.Loss`, or a function (labels, outputs) ->
            one loss an example, as for `compile`; softmax cross-entropy of class indices, from
            logits, by default.
        batch_size: Examples a step; a dataset's own, or 128, by default.
        private: Whether it is trained with DP-SGD.
        prepare: What becomes of data by name: other labels, a part of the examples.
        epochs: How many a fit has where nothing else is said.
        name: In tables and on cards.
    """

    model_fn: Callable[..., keras.Model]
    data: Any = ()
    validation: Any = None
    test: Any = None
    loss: Any = None
    batch_size: int | None = None
    private: bool = False
    prepare: Callable[[Dataset], Dataset] | None = None
    epochs: int | None = None
    name: str = ""

    def build(self, dataset: Dataset | None) -> keras.Model:
        """A new model for the data in hand."""
        if isinstance(self.data, str) and dataset is not None:
            return self.model_fn(dataset.shape, dataset.classes)
        return self.model_fn()
