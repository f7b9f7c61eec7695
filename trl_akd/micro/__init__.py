"""Generated programming tasks and tiny models for quickstarts, tests and benchmarks."""
