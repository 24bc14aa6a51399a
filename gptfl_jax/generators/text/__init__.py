"""Texts to texts: prompts are written by these."""
