"""Judges of answers: the rubric, prompts, models and their training."""
