"""A small generated world of programming tasks, for quick starts, tests and honest comparisons."""
