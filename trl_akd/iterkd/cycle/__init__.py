"""Cycles of IterKD: answers, verification, feedback and new questions."""
