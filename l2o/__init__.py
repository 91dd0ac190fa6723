"""l2o: optimizer amalgamation for TensorFlow and Keras."""

__version__ = "0.1.0"
