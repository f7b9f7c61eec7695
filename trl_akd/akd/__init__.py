"""Adaptive knowledge distillation: its configuration and its trainer."""
