"""Examples of every shape that a user's own network may take, 40 of each."""

import numpy as np

_random = np.random.default_rng(0)
TABLE = _random.normal(size=(40, 3)).astype("float32")
TARGETS = _random.normal(size=40).astype("float32")
SERIES = _random.normal(size=(40, 4, 2)).astype("float32")
IMAGES = _random.normal(size=(40, 6, 6, 1)).astype("float32")
WORDS = _random.integers(0, 9, (40, 4))
