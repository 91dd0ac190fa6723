"""Policies that are shipped: how a finished run becomes one."""
