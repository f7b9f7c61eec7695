"""What is minimised: per-token divergences and their fused, chunked form. Imports torch alone."""
