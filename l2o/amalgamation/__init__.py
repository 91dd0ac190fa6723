"""Meta-training: how a policy is trained from its teachers."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "l2o trains and evaluates policies on Keras' tensorflow backend alone; trained ones run on "
        f"any. Received: KERAS_BACKEND={keras.backend.backend()}"
    )
