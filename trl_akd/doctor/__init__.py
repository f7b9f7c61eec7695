"""Estimates of memory and time before a run, from the configurations of its models, and checks of its data."""
