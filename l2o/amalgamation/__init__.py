"""Meta-training: how a policy is trained from its teachers."""

from l2o.extras import require

require("train", "l2o.amalgamation")
