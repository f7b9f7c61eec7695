"""Evaluation of models on programming benchmarks: problems, prompts, samples, verdicts and reports."""
