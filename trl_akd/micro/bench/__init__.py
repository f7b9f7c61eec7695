"""Benchmark of divergences on generated programs with several correct answers per task and an exact teacher."""
