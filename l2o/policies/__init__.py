"""Policies, rules with their weights: on disk, in a saved optimizer, shipped with the package."""
