"""Stage 2: central training on the synthetic data."""
