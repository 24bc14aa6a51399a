"""Texts to pictures."""
