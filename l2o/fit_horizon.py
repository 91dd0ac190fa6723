"""FitHorizon: a callback of `fit` by which an optimizer learns how long the fit is."""

from __future__ import annotations

import warnings

import keras
from keras import ops

from l2o.optimizer import AmalgamatedOptimizer


class FitHorizon(keras.callbacks.Callback):
    """Tells the model's `AmalgamatedOptimizer` how many steps and epochs a `fit` has.

    In place of `steps` and `epochs` of the optimizer, which it sets:

        model.fit(x, y, epochs=10, callbacks=[l2o.FitHorizon()])

    The end is that of this `fit`: where an earlier one came before, its steps are behind, and the
    whole is as long as both. An epoch is what `fit` calls one, with `steps_per_epoch` too. Where
    the length of the data is unknown the optimizer learns nothing, and a warning says so.

    Raises:
        ValueError: At the start of `fit`, if the model's optimizer is another.
    """

    def __init__(self):
        super().__init__()
        self._told = True

    def on_train_begin(self, logs=None) -> None:
        """Called by `fit`."""
        self._told = False

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        """Called by `fit`; the first epoch need not be number 0."""
        if self._told:
            return
        self._told = True
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of mixed_float16
        if not isinstance(optimizer, AmalgamatedOptimizer):
            raise ValueError(
                f"FitHorizon is for an AmalgamatedOptimizer. Received: {type(optimizer).__name__}"
            )
        batches, last = self.params.get("steps"), self.params["epochs"]
        if batches is None:
            warnings.warn(
                f"{optimizer.name}: the length of the data is not known, and so not that of the "
                "fit; AmalgamatedOptimizer(..., steps=) tells it",
                stacklevel=2,
            )
            return
        every = optimizer.gradient_accumulation_steps or 1
        behind = int(ops.convert_to_numpy(optimizer.iterations)) * every
        whole = behind + (last - epoch) * batches
        if optimizer.set_horizon(max(whole // every, 1), whole / batches):
            self.model.make_train_function(force=True)
