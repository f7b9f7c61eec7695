"""Benchmark of training rules with real models, by the commands that a user would run."""
