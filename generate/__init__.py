"""Stage 1: prompts and synthetic data."""
