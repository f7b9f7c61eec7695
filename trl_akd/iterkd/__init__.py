"""IterKD: cycles of training on correct and faulty answers, feedback on the student, and new questions by difficulty."""
