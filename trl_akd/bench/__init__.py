"""Benchmarks: execution of runs, results and pages; and the benchmark of training rules with real models."""
