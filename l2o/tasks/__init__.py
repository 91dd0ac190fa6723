"""A network, its loss and its data as pure functions."""

from l2o.extras import require

require("train", "l2o.tasks")
