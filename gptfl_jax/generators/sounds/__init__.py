"""Sounds of texts: what AudioLDM consists of, and its pipeline."""
