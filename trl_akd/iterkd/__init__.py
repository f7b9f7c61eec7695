"""IterKD: cycles of right and wrong answers, feedback on the student's own, and new questions by difficulty."""
