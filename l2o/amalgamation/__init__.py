"""Meta-training: how a policy is trained from its teachers."""
