"""A network, its loss and its data as pure functions."""
