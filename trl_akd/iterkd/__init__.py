"""IterKD: cycles of training on correct and faulty answers, feedback, and new questions by difficulty."""
